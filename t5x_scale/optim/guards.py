"""What the step does to gradients and states around the optimiser: norms, clipping, refusing what is not finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def global_norm(tree: Any) -> jax.Array:
    """The Euclidean norm over all elements of all leaves, a float32 scalar whatever the leaves' dtypes.

    It is NaN or infinite where an element is, so `isfinite(global_norm(grads))` tells about all of them.
    """
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, start=jnp.float32(0)))


def clip_by_global_norm(grads: Any, norm: jax.Array, max_norm: float) -> Any:
    """Scales `grads` so that their global norm is at most `max_norm`; dtypes stay.

    The factor is `min(1, max_norm / norm)`, T5X's `max_norm * min(1 / max_norm, 1 / norm)` in the form that is
    exactly 1 under the threshold.

    Args:
      grads: tree of gradients.
      norm: their `global_norm`, which the step wants for its metrics anyway.
      max_norm: above 0.
    """
    scale = jnp.minimum(jnp.float32(1), max_norm / norm)
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)


def select_finite(ok: jax.Array, new_tree: Any, old_tree: Any) -> Any:
    """`new_tree` where `ok` (a bool scalar), else `old_tree`: leaf by leaf, without a branch in the program."""
    return jax.tree.map(lambda new, old: jnp.where(ok, new, old), new_tree, old_tree)
