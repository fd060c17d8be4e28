"""The order in which a row lies along a length that is split over devices.

With causal masks a query sees what comes before it. Were the length cut into as many pieces as there are devices, the
first would have little to do and the last everything, and each step takes as long as the busiest. In zigzag order it
is cut into twice as many, and device i of n has pieces i and 2n - 1 - i: all see equally much (as in The Llama 3 Herd
of Models, section 3.3.2). Everything but attention is the same at all places and does not notice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.partitioning.rules import Rules
from t5x_scale.partitioning.shardings import constrain, current_rules, to_spec

ORDERS = ("zigzag", "contiguous")


def check_order(order: str) -> None:
    """Raises:
    UserError: `order` is none of `ORDERS`.
    """
    check_choice("StepConfig.context_order", order, ORDERS)


def check_length(length: int, mesh: Mesh | AbstractMesh, rules: Rules, order: str) -> None:
    """Checks that rows of `length` can be split in `order`, and the residual stream as the rules have it.

    Raises:
      UserError: with the nearest length that can.
    """
    devices, residual = length_devices(mesh, rules), _names(mesh, rules, "residual_length")
    folds = 2 if order == "zigzag" and devices > 1 else 1
    pieces = math.lcm(folds * devices, math.prod(mesh.shape[name] for name in residual))
    if length % pieces:
        names = dict.fromkeys((*_names(mesh, rules, "length"), *residual))
        written = " x ".join(f"{name}={mesh.shape[name]}" for name in names)
        raise UserError(
            f"rows of {length} tokens do not divide over {written}{' in zigzag order' if folds == 2 else ''}: the "
            f"length must be a multiple of {pieces}, such as {length // pieces * pieces or pieces}"
        )


def length_axis(mesh: Mesh | AbstractMesh, rules: Rules) -> str | None:
    """The mesh axis that splits the length, if it has more than one device.

    Raises:
      UserError: there are several.
    """
    names = _names(mesh, rules, "length")
    if len(names) > 1:
        raise UserError(f"rules: attention needs 'length' on one mesh axis, not on {' and '.join(names)}")
    return names[0] if names else None


def length_devices(mesh: Mesh | AbstractMesh, rules: Rules) -> int:
    """Over how many devices the length is split."""
    axis = length_axis(mesh, rules)
    return 1 if axis is None else mesh.shape[axis]


def places(length: int, devices: int, order: str) -> np.ndarray:
    """int32 [length]: which place of a row each place of the stored length holds."""
    natural = np.arange(length, dtype=np.int32)
    if order == "contiguous" or devices == 1:
        return natural
    pieces = natural.reshape(2 * devices, -1)
    return np.concatenate([pieces[[i, 2 * devices - 1 - i]].reshape(-1) for i in range(devices)])


def in_order(batch: Mapping[str, jax.Array], order: str) -> Mapping[str, jax.Array]:
    """The fields [B, L] of a batch in `order`, with a field more that says where each position stands.

    As it is where the length is not split: outside of `activation_rules` too.

    Raises:
      UserError: the length does not divide.
    """
    context = current_rules()
    if context is None:
        return batch
    rows, length = batch[fields.INPUT_TOKENS].shape
    check_length(length, *context, order)
    devices = length_devices(*context)
    if devices == 1 or order == "contiguous":
        return batch
    index = places(length, devices, order)
    moved = {name: jnp.take(x, index, axis=1) for name, x in batch.items()}
    moved[fields.INDEX] = jnp.broadcast_to(index, (rows, length))
    return {name: constrain(x, fields.AXES) for name, x in moved.items()}


def _names(mesh: Mesh | AbstractMesh, rules: Rules, axis: str) -> tuple[str, ...]:
    """The mesh axes of more than one device that split a logical axis."""
    entry = (*to_spec(rules, (axis,), mesh), None)[0]
    return () if entry is None else (entry,) if isinstance(entry, str) else entry
