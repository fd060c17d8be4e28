"""Normalisation over the last dimension, computed in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + epsilon) * scale` (Zhang and Sennrich 2019)."""

    dim: int
    axis: str = "embed"
    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,))
        scale = self.param("scale", ones, (self.dim,), self.param_dtype)
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (y * scale.astype(jnp.float32)).astype(self.dtype)


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(variance + epsilon) * scale [+ bias]`. PaLM's has a scale and no bias."""

    dim: int
    axis: str = "embed"
    use_bias: bool = True
    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,))
        scale = self.param("scale", ones, (self.dim,), self.param_dtype)
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.epsilon)
        y = y * scale.astype(jnp.float32)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (self.axis,))
            y += self.param("bias", zeros, (self.dim,), self.param_dtype).astype(jnp.float32)
        return y.astype(self.dtype)
