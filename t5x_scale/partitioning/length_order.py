"""The order in which a row lies along a length that is split over devices.

With causal masks a query sees what comes before it. Were the length cut into as many pieces as there are devices, the
first would have little to do and the last everything, and each step takes as long as the busiest. In zigzag order it
is cut into twice as many, and device i of n has pieces i and 2n - 1 - i: all see equally much (as in The Llama 3 Herd
of Models, section 3.3.2). Everything but attention is the same at all places and does not notice.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.partitioning.rules import Rules
from t5x_scale.partitioning.shardings import constrain, current_rules, to_spec

ORDERS = ("zigzag", "contiguous")


def check_order(order: str) -> None:
    """Raises:
    UserError: `order` is none of `ORDERS`.
    """
    if order not in ORDERS:
        hint = did_you_mean(str(order), ORDERS) or f"; known are {', '.join(ORDERS)}"
        raise UserError(f"context_order: unknown order {order!r}{hint}")


def check_length(length: int, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, rules: Rules, order: str) -> None:
    """Checks that rows of `length` can be split in `order`.

    Raises:
      UserError: with the nearest lengths that can.
    """
    devices = length_devices(mesh, rules)
    pieces = 2 * devices if order == "zigzag" and devices > 1 else devices
    if length % pieces:
        below, above = length // pieces * pieces, -(-length // pieces) * pieces
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"rows of {length} tokens do not divide into {pieces} pieces for {devices} devices along the length in "
            f"{order} order; the nearest that do have {nearest}"
        )


def length_devices(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, rules: Rules) -> int:
    """Over how many devices the length is split."""
    axis = length_axis(mesh, rules)
    return 1 if axis is None else mesh.shape[axis]


def length_axis(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, rules: Rules) -> str | None:
    """The mesh axis that splits the length, if it has more than one device.

    Raises:
      UserError: there are several.
    """
    entry = (*to_spec(rules, ("length",), mesh), None)[0]
    if isinstance(entry, tuple):
        raise UserError(f"rules: attention needs 'length' on one mesh axis, not on {' and '.join(entry)}")
    return entry


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
    devices = length_devices(*context)
    check_length(length, *context, order)
    if devices == 1 or order == "contiguous":
        return batch
    index = places(length, devices, order)
    moved = {name: jnp.take(x, index, axis=1) for name, x in batch.items()}
    moved[fields.INDEX] = jnp.broadcast_to(index, (rows, length))
    return {name: constrain(x, fields.AXES) for name, x in moved.items()}
