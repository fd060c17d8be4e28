"""Layered gradient accumulation: for every layer, for every micro-batch, instead of the other way round.

A layer's weights are then gathered once a step on the way forward and once on the way back, whatever the number of
micro-batches (Lamy-Poirier 2021, "Layered gradient accumulation and modular pipeline parallelism", arXiv 2106.02679).
Unlike there, gradients are summed over devices for each micro-batch, as without, and kept where they are stored.
The price is memory: what the backward pass finds saved of a layer is saved of all micro-batches at once, as it is
without any accumulation; only what a layer computes in between is that of one micro-batch.
"""

from __future__ import annotations

from typing import Any

import jax

from t5x_scale.layers.masks import Mask
from t5x_scale.models.held import dtypes_of_use, gather_held, hold, use, while_held
from t5x_scale.models.stack import Noted, Rows, Stack, join_rows, split_rows
from t5x_scale.partitioning.shardings import activation_rules, current_rules

# Cheap, and what they make of a parameter must not be kept: it is whole on every device.
_CHEAP = {"convert_element_type", "sharding_constraint", "broadcast_in_dim", "reshape", "transpose", "squeeze", "slice"}
_CHEAP |= {"dynamic_slice", "concatenate", "select_n", "stop_gradient", "pvary", "pcast", "copy"}


def run_layered(
    stack: Stack, x_BLD: jax.Array, mask: Mask, positions: jax.Array, *, micro_batches: int
) -> tuple[jax.Array, Noted]:
    """Runs `stack` layer by layer, each through all micro-batches before the next.

    Raises:
      UserError: the rows do not divide into micro-batches.
    """
    rows = Rows(mask, positions, x_BLD.shape[0], micro_batches)
    x = split_rows(x_BLD, micro_batches)
    first = jax.tree.map(lambda leaf: leaf[0], (stack.params, stack.windows, (x, rows.split)))
    dtypes = _dtypes(stack, rows, *first)

    def layer(x: jax.Array, own: tuple[Any, Any]) -> tuple[jax.Array, Noted]:
        params, window = own
        held = gather_held(hold(params, stack.axes, dtypes), stack.axes)

        def one(_: None, part: tuple[jax.Array, Any]) -> tuple[None, tuple[jax.Array, Noted]]:
            return None, _one_layer(stack, use(held), window, part[0], *rows.join(part[1]))

        return jax.lax.scan(_checkpoint(one, stack.policy), None, (x, rows.split))[1]

    x, noted = jax.lax.scan(_checkpoint(layer, stack.policy or is_dear), x, (stack.params, stack.windows))
    # [layers, parts, rows] to [layers, B].
    return join_rows(x), {name: jax.vmap(join_rows)(values) for name, values in noted.items()}


def _one_layer(stack: Stack, *args: Any) -> tuple[jax.Array, Noted]:
    context = current_rules()
    if context is None:
        return stack.layer(*args)
    mesh, rules = context
    with activation_rules(mesh, while_held(rules)):
        return stack.layer(*args)


def _dtypes(stack: Stack, rows: Rows, params: Any, window: Any, part: tuple[jax.Array, Any]) -> Any:
    def layer(params: Any) -> Any:
        return stack.layer(params, window, part[0], *rows.join(part[1]))

    return dtypes_of_use(layer, params)


def _checkpoint(function: Any, policy: Any) -> Any:
    return function if policy is None else jax.checkpoint(function, policy=policy, prevent_cse=False)


def is_dear(primitive: Any, *_: Any, **__: Any) -> bool:
    """The policy of who saves everything, but for what is cheaply made again, of parameters above all."""
    return primitive.name not in _CHEAP
