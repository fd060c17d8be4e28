"""Rows in another order, and their gradients in the old one."""

from __future__ import annotations

import jax


@jax.custom_vjp
def permute(x_MD: jax.Array, order_M: jax.Array, back_M: jax.Array) -> jax.Array:
    """`x[order]`, where `back` undoes `order`.

    The gradient is `d[back]`: automatic differentiation, which cannot know that no row is taken twice, adds the rows
    one by one into zeros.
    """
    return x_MD.at[order_M].get(unique_indices=True, mode="promise_in_bounds")


def _forward(x: jax.Array, order: jax.Array, back: jax.Array):
    return permute(x, order, back), (order, back)


def _backward(saved: tuple[jax.Array, jax.Array], d_rows: jax.Array):
    order, back = saved
    return permute(d_rows, back, order), None, None


permute.defvjp(_forward, _backward)
