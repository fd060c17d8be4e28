"""Normalisation over the last dimension, computed in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_scale.partitioning.shards import gather_parameter


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + epsilon) * (offset + scale)` (Zhang and Sennrich 2019).

    Attributes:
      dim: size of the last dimension.
      axis: its logical name.
      epsilon: added to the mean of the squares.
      offset: added to the scale, which begins at `1 - offset`. Gemma stores its scales as differences from 1.
    """

    dim: int
    axis: str = "embed"
    epsilon: float = 1e-6
    offset: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = _scale(self)
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (y * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(variance + epsilon) * (offset + scale) [+ bias]`. PaLM's has a scale and no bias.

    Attributes:
      dim: size of the last dimension.
      axis: its logical name.
      use_bias: adds a bias, which begins at 0.
      epsilon: added to the variance.
      offset: added to the scale, which begins at `1 - offset`.
    """

    dim: int
    axis: str = "embed"
    use_bias: bool = True
    epsilon: float = 1e-6
    offset: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = _scale(self)
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.epsilon)
        y = y * scale
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (self.axis,))
            y += _placed(self, self.param("bias", zeros, (self.dim,), self.param_dtype)).astype(jnp.float32)
        return y.astype(self.dtype)


def _placed(norm: RMSNorm | LayerNorm, vector: jax.Array) -> jax.Array:
    """The vector gathered from where it is stored: the features of what it multiplies lie over other axes."""
    return gather_parameter(vector, (norm.axis,))


def _scale(norm: RMSNorm | LayerNorm) -> jax.Array:
    """What the normalised input is multiplied with, float32 [dim]."""
    start = nn.with_logical_partitioning(nn.initializers.constant(1.0 - norm.offset), (norm.axis,))
    scale = _placed(norm, norm.param("scale", start, (norm.dim,), norm.param_dtype)).astype(jnp.float32)
    # Adding nothing is left out of the program, not left to the compiler.
    return scale + norm.offset if norm.offset else scale
