"""Rows of a table by index: the one function behind which embedding look-ups live."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x_scale.partitioning.axes import Axes
from t5x_scale.partitioning.shardings import constrain, gather
from t5x_scale.partitioning.tables import TablePlan, plan_table

# Entries of a table's gradient that a device sums in float32 at once, before they are summed over devices: a gibibyte.
_LARGEST = 2**28


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lookup(table: jax.Array, indices: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
    """Rows [..., D] of a `table` [R, D] with logical `axes`, in `dtype`; indices outside are clipped.

    The gradient of the table is summed in float32: a common token stands thousands of times in a batch, and a sum
    in bfloat16 stops growing after 256 terms of equal size.

    On a mesh that splits the rows of the table, each device looks up those that it has, and the results are added.
    """
    # Ids are checked where they are made; clipping keeps a bad one from turning the whole row to NaN.
    plan = plan_table(axes, 0, indices.shape)
    if plan is None:
        return jnp.take(gather(table.astype(dtype), axes), indices, axis=0, mode="clip")

    def on_device(shard: jax.Array, indices: jax.Array) -> jax.Array:
        part = plan.take(shard.astype(dtype))
        local, is_here = _local(plan, len(part), len(table), indices)
        rows = jnp.take(part, local, axis=0, mode="clip")
        return _add(plan, _only(is_here, rows))

    out_specs = _rows_spec(plan, table.shape[1])
    in_specs = (plan.stored, plan.tokens)
    return jax.shard_map(on_device, mesh=plan.mesh, in_specs=in_specs, out_specs=out_specs)(table, indices)


def _forward(table: jax.Array, indices: jax.Array, axes: Axes, dtype: Any):
    return lookup(table, indices, axes, dtype), (table, indices)


def _backward(axes: Axes, dtype: Any, saved: tuple[jax.Array, jax.Array], d_rows: jax.Array):
    table, indices = saved
    plan = plan_table(axes, 0, indices.shape)
    if plan is None:
        zeros = jnp.zeros((len(table), d_rows.shape[-1]), jnp.float32)
        d_table = zeros.at[jnp.clip(indices, 0, len(table) - 1)].add(d_rows.astype(jnp.float32))
        return constrain(d_table, axes).astype(table.dtype), None

    def on_device(shard: jax.Array, d_rows: jax.Array, indices: jax.Array) -> jax.Array:
        number = len(shard) if plan.row_axes else len(table)
        d_rows = _spread(plan, d_rows, table.shape[1])
        local, is_here = _local(plan, number, len(table), indices)
        blocks = _to_blocks(plan, number, _only(is_here, d_rows))
        like = shard[:, : shard.shape[1] // len(blocks)].astype(jnp.float32)

        def add(d_rows: jax.Array) -> jax.Array:
            varying = plan.token_axes + plan.row_axes + plan.feature_axes
            zeros = jax.lax.pcast(jnp.zeros((number, d_rows.shape[-1]), jnp.float32), varying, to="varying")
            # All tokens of the device are in it: over devices it is summed once.
            return plan.give(zeros.at[local].add(d_rows.astype(jnp.float32)), like)

        d_shard = add(blocks[0]) if len(blocks) == 1 else jnp.moveaxis(jax.lax.map(add, blocks), 0, 1)
        return d_shard.reshape(shard.shape).astype(shard.dtype)

    in_specs = (plan.stored, _rows_spec(plan, table.shape[1]), plan.tokens)
    d_table = jax.shard_map(on_device, mesh=plan.mesh, in_specs=in_specs, out_specs=plan.stored)
    return d_table(table, d_rows, indices), None


lookup.defvjp(_forward, _backward)


def _to_blocks(plan: TablePlan, number: int, d_rows: jax.Array) -> jax.Array:
    """[..., D] to [blocks, ..., D / blocks], so that `number` rows of a block have at most `_LARGEST` entries.

    Each block has as many features of every shard that is gathered.
    """
    shards = plan.gathered_features
    features = d_rows.shape[-1] // shards
    least = -(-number * d_rows.shape[-1] // _LARGEST)
    blocks = next((n for n in range(least, features) if features % n == 0), features)
    split = d_rows.reshape(*d_rows.shape[:-1], shards, blocks, -1)
    return jnp.moveaxis(split, -2, 0).reshape(blocks, *d_rows.shape[:-1], -1)


def _local(plan: TablePlan, number: int, total: int, indices: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Indices into the `number` rows of `total` that this device has, and which it has; None if it has all."""
    indices = jnp.clip(indices, 0, total - 1)
    if not plan.row_axes:
        return indices, None
    local = indices - jax.lax.axis_index(plan.row_axes) * number
    return jnp.clip(local, 0, number - 1), (local >= 0) & (local < number)


def _only(is_here: jax.Array | None, rows: jax.Array) -> jax.Array:
    return rows if is_here is None else jnp.where(is_here[..., None], rows, 0)


def _add(plan: TablePlan, rows: jax.Array) -> jax.Array:
    """The sum over the devices that split the table's rows, each keeping some of the features if they divide."""
    if not plan.row_axes:
        return rows
    if rows.shape[-1] % _parts(plan, plan.row_axes):
        return jax.lax.psum(rows, plan.row_axes)
    return jax.lax.psum_scatter(rows, plan.row_axes, scatter_dimension=rows.ndim - 1, tiled=True)


def _spread(plan: TablePlan, d_rows: jax.Array, features: int) -> jax.Array:
    """What `_add` does, transposed."""
    if not plan.row_axes:
        return d_rows
    if _is_scattered(plan, features):
        return jax.lax.all_gather(d_rows, plan.row_axes, axis=d_rows.ndim - 1, tiled=True)
    return jax.lax.pcast(d_rows, plan.row_axes, to="varying")


def _rows_spec(plan: TablePlan, features: int) -> PartitionSpec:
    names = plan.feature_axes + (plan.row_axes if _is_scattered(plan, features) else ())
    return PartitionSpec(*(*plan.tokens, None, None)[:2], names or None)


def _is_scattered(plan: TablePlan, features: int) -> bool:
    return features % _parts(plan, plan.feature_axes + plan.row_axes) == 0


def _parts(plan: TablePlan, names: tuple[str, ...]) -> int:
    return math.prod(plan.mesh.shape[name] for name in names)
