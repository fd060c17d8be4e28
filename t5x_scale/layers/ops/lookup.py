"""Rows of a table by index: the one function behind which embedding look-ups live."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from t5x_scale.partitioning.axes import Axes
from t5x_scale.partitioning.shardings import constrain, gather


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lookup(table: jax.Array, indices: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
    """Rows [..., D] of a `table` [R, D] with logical `axes`, in `dtype`; indices outside are clipped.

    The gradient of the table is summed in float32: a common token stands thousands of times in a batch, and a sum
    in bfloat16 stops growing after 256 terms of equal size.
    """
    # Ids are checked where they are made; clipping keeps a bad one from turning the whole row to NaN.
    return jnp.take(gather(table.astype(dtype), axes), indices, axis=0, mode="clip")


def _forward(table: jax.Array, indices: jax.Array, axes: Axes, dtype: Any):
    # An empty slice carries the table's shape and dtype to the backward pass and costs nothing.
    return lookup(table, indices, axes, dtype), (table[:, :0], indices)


def _backward(axes: Axes, dtype: Any, saved: tuple[jax.Array, jax.Array], d_rows: jax.Array):
    like, indices = saved
    zeros = jnp.zeros((like.shape[0], d_rows.shape[-1]), jnp.float32)
    d_table = zeros.at[jnp.clip(indices, 0, like.shape[0] - 1)].add(d_rows.astype(jnp.float32))
    return constrain(d_table, axes).astype(like.dtype), None


lookup.defvjp(_forward, _backward)
