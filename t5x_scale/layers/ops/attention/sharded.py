"""A kernel on a mesh: each device attends for its own rows of the batch and its own heads.

A custom call is opaque to the partitioner, which would gather everything for it; in `shard_map` each device calls it on
what it has. Kernels of all makers are wrapped alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x_scale.layers.masks import Mask
from t5x_scale.partitioning.shardings import current_rules, dividing, to_spec


class Vectors(NamedTuple):
    """What a mask says, by rows of the batch: int32 [B, L] each, or None as in `Mask`; `window` is a scalar."""

    last: jax.Array | None
    segments: jax.Array | None
    window: jax.Array | None


def to_vectors(mask: Mask, batch_size: int) -> Vectors:
    """The vectors of a mask of queries among their own keys, with a row for each of the batch."""

    def rows(x: jax.Array | None) -> jax.Array | None:
        return None if x is None else jnp.broadcast_to(x, (batch_size, x.shape[1]))

    return Vectors(rows(mask.last_visible), rows(mask.query_segments), mask.window)


def has_split_length() -> bool:
    """Whether the rules in force give each device only a part of each sequence."""
    context = current_rules()
    return context is not None and bool(to_spec(context[1], ("length",), context[0]))


def over_mesh(
    kernel: Callable[[jax.Array, jax.Array, jax.Array, Vectors], jax.Array],
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    vectors: Vectors,
) -> jax.Array:
    """`kernel(q, k, v, vectors)` on each device's part of the batch and of the heads; [B, L, N, H].

    The kv heads are split with the query heads where they divide. Otherwise every device gets all of them and takes the
    ones that its query heads read, and their gradients are summed. A dimension that does not divide over its mesh axes
    is not split: the devices along them do the same work.
    """
    context = current_rules()
    if context is None or context[0].size == 1:
        return kernel(q_BLNH, k_BSKH, v_BSKH, vectors)
    mesh, rules = context
    spec = dividing(mesh, to_spec(rules, ("batch", None, "act_heads"), mesh), q_BLNH.shape)
    batch, _, heads = (*spec, None, None, None)[:3]
    names = () if heads is None else (heads,) if isinstance(heads, str) else heads
    are_kv_split = k_BSKH.shape[2] % math.prod(mesh.shape[name] for name in names) == 0

    def on_device(q: jax.Array, k: jax.Array, v: jax.Array, vectors: Vectors) -> jax.Array:
        if not are_kv_split:
            mine = _heads_read(jax.lax.axis_index(names), q.shape[2], q_BLNH.shape[2] // k.shape[2])
            k, v = (_take_heads(x, mine) for x in (k, v))
        return kernel(q, k, v, vectors)

    q_spec, kv_spec = PartitionSpec(batch, None, heads), PartitionSpec(batch, None, heads if are_kv_split else None)
    rows = PartitionSpec(batch)
    specs = (q_spec, kv_spec, kv_spec, Vectors(rows, rows, PartitionSpec()))
    run = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=q_spec, check_vma=False)
    return run(q_BLNH, k_BSKH, v_BSKH, vectors)


def _heads_read(part: jax.Array, count: int, group: int) -> jax.Array:
    """Kv heads for the query heads of the `part`-th device: one where they share it, else one for each of `count`."""
    if group % count == 0:
        return (part * count // group)[None]
    return (part * count + jnp.arange(count)) // group


def _take_heads(x_BSKH: jax.Array, heads: jax.Array) -> jax.Array:
    if heads.size == 1:
        return jax.lax.dynamic_slice_in_dim(x_BSKH, heads[0], 1, axis=2)
    return jnp.take(x_BSKH, heads, axis=2)
