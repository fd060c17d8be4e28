"""Rows in another order or other places, and their gradients back where they were."""

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


@jax.custom_vjp
def move(x_MD: jax.Array, source_N: jax.Array, target_M: jax.Array) -> jax.Array:
    """`y[n] = x[source[n]]`, or 0 where `source[n]` is M: [N, D].

    Args:
      x_MD: rows.
      source_N: which of them comes to each place; M where none does.
      target_M: to which place each of them goes, N where to none: `source[target[m]] = m`, and no row goes to two.
        The gradient needs it, as that of `permute` needs `back`.
    """
    return jnp.take(x_MD, source_N, axis=0, mode="fill", fill_value=0)


def _move_forward(x: jax.Array, source: jax.Array, target: jax.Array):
    return move(x, source, target), (source, target)


def _move_backward(saved: tuple[jax.Array, jax.Array], d_rows: jax.Array):
    source, target = saved
    return move(d_rows, target, source), None, None


move.defvjp(_move_forward, _move_backward)
