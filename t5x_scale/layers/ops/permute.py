"""Rows in another order, and their gradients in the old one."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def permute(x_MD: jax.Array, order_M: jax.Array, back_M: jax.Array) -> jax.Array:
    """`x[order]`, where `back` undoes `order`.

    The gradient is `d[back]`: automatic differentiation, which cannot know that no row is taken twice, adds the rows
    one by one into zeros.
    """
    return jnp.take(x_MD, order_M, axis=0, unique_indices=True, mode="clip")


def _forward(x: jax.Array, order: jax.Array, back: jax.Array):
    return permute(x, order, back), (order, back)


def _backward(saved: tuple[jax.Array, jax.Array], d_rows: jax.Array):
    order, back = saved
    return permute(d_rows, back, order), None, None


permute.defvjp(_forward, _backward)
