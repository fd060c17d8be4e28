"""Noise and signal of a step's gradient, from what accumulation has at hand (McCandlish et al. 2018, 1812.06162).

A gradient that is the mean over w tokens has E|g|² = |G|² + tr(Σ)/w: |G|² is the signal, tr(Σ) the noise of one token.
The micro-batches of a step and their whole batch are two sizes w, from which both are estimated without bias
(appendix A.1). Their ratio tr(Σ)/|G|², in tokens, is the batch beyond which more of it saves few steps. Single steps
are too noisy to divide: both are recorded, and averaged over steps before that (`laws.mccandlish.noise_scale`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_scale.optim.guards import global_norm

METRICS = ("optim/gradient_noise", "optim/gradient_signal")


class Part(NamedTuple):
    """Of the gradient of one micro-batch, or of all, [parts]: |g|² as a mean over its weight, and that weight."""

    square: jax.Array
    weight: jax.Array


def make_part(grads: Any, weight: jax.Array) -> Part:
    """Of gradients that are sums over tokens of this weight."""
    return Part(jnp.square(global_norm(grads) / jnp.maximum(weight, 1.0)), weight)


def noise_and_signal(parts: Part, norm: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(tr(Σ) of a token, |G|²), of which each may be negative in a single step.

    Parts of no weight have no gradient, and do not count; NaN where fewer than two are left.

    Args:
      parts: [parts].
      norm: of the gradient that is the mean over the whole batch, before clipping.
      weight: of the whole batch.
    """
    counts = parts.weight > 0
    share = counts / jnp.maximum(jnp.sum(counts), 1)
    small = jnp.sum(share * parts.square)
    # Of parts of different weights the mean of 1/w counts.
    inverse = jnp.sum(share / jnp.where(counts, parts.weight, 1.0))
    is_fixed = jnp.sum(counts) > 1
    gap = jnp.where(is_fixed, inverse - 1.0 / weight, jnp.nan)
    noise = (small - jnp.square(norm)) / gap
    return noise, small - noise * inverse
