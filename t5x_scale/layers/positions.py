"""Where a token stands: rotations, biases and tables.

A position scheme of attention has two methods. `encode_keys` is applied to keys as they are made (and so before
they are cached); `encode_queries` returns the queries and, for schemes that need one, a bias on the logits.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_scale.core.errors import UserError
from t5x_scale.layers.initializers import FanIn, Initializer, Normal
from t5x_scale.layers.ops.lookup import lookup
from t5x_scale.layers.ops.matmul import matmul
from t5x_scale.layers.rope_scaling import RopeScaling, plain_frequencies


class NoPositions(nn.Module):
    """Attention that knows no positions (they stand in the embeddings, or nowhere)."""

    embed_dim: int
    num_heads: int
    head_dim: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def encode_keys(self, k: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns the keys [B, S, K, H] unchanged."""
        return k

    def encode_queries(self, q: jax.Array, positions: jax.Array, key_positions: jax.Array):
        """Returns the queries [B, L, N, H] unchanged, and no bias."""
        return q, None


class Rope(nn.Module):
    """Rotary positions (Su et al. 2021): pairs of features turn by `position * base^(-2i/d)`.

    Attributes:
      base: the longest wavelength is about `2 pi base`.
      fraction: share of the head's features that turn (Pythia: 0.25), an odd number of which is completed to whole
        pairs; the rest pass unchanged.
      interleaved: pairs are neighbours (2i, 2i+1) instead of halves (i, i + d/2).
      scaling: other frequencies, for contexts longer than those trained on, or None.
    """

    embed_dim: int
    num_heads: int
    head_dim: int
    base: float = 10000.0
    fraction: float = 1.0
    interleaved: bool = False
    scaling: RopeScaling | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def encode_keys(self, k: jax.Array, positions: jax.Array) -> jax.Array:
        """Turns keys [B, S, K, H] by their positions [B or 1, S]."""
        return self._rotate(k, positions)

    def encode_queries(self, q: jax.Array, positions: jax.Array, key_positions: jax.Array):
        """Turns queries [B, L, N, H] by their positions [B or 1, L]; no bias."""
        return self._rotate(q, positions), None

    def _rotate(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        share = int(self.head_dim * self.fraction)
        if self.scaling is None:
            frequencies, amplitude = plain_frequencies(self.base, max(share, 1)), 1.0
        else:
            frequencies, amplitude = self.scaling.frequencies(self.base, share), self.scaling.amplitude()
        rotated = 2 * len(frequencies)
        if not 0 < share <= rotated <= self.head_dim:
            raise UserError(
                f"Rope: {share} of {self.head_dim} features would turn, which are not pairs: change "
                "ModelConfig.head_dim or Rope.fraction"
            )
        angles = positions.astype(jnp.float32)[..., None, None] * jnp.asarray(frequencies, jnp.float32)
        cos, sin = amplitude * jnp.cos(angles), amplitude * jnp.sin(angles)
        turned = x[..., :rotated].astype(jnp.float32)
        if self.interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
        else:
            first, second = jnp.split(turned, 2, axis=-1)
        parts = (first * cos - second * sin, second * cos + first * sin)
        if self.interleaved:
            turned = jnp.stack(parts, axis=-1).reshape(turned.shape)
        else:
            turned = jnp.concatenate(parts, axis=-1)
        return jnp.concatenate([turned.astype(x.dtype), x[..., rotated:]], axis=-1)


class RelativePositions(nn.Module):
    """Transformer-XL's relative positions (Dai et al. 2019), as Gopher uses them.

    The logit of query i and key j is `(q_i + u) . k_j + (q_i + v) . (W r_{i-j})` with sinusoids `r`, one W of
    [embed, heads, head size] and two learned vectors `u, v` of [heads, head size] per layer.
    """

    embed_dim: int
    num_heads: int
    head_dim: int
    kernel_init: Initializer = FanIn()
    bias_init: Initializer = Normal(0.02)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        heads = (self.num_heads, self.head_dim)

        def draw(init: Initializer, fan_in: int):
            return lambda key, shape, dtype: init(key, shape, dtype, fan_in)

        def vector(name: str) -> jax.Array:
            init = nn.with_logical_partitioning(draw(self.bias_init, self.head_dim), ("heads", "kv"))
            return self.param(name, init, heads, self.param_dtype)

        kernel = nn.with_logical_partitioning(draw(self.kernel_init, self.embed_dim), ("embed", "heads", "kv"))
        self.kernel = self.param("kernel", kernel, (self.embed_dim, *heads), self.param_dtype)
        self.content_bias = vector("content_bias")
        self.position_bias = vector("position_bias")

    def encode_keys(self, k: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns the keys [B, S, K, H] unchanged."""
        return k

    def encode_queries(self, q: jax.Array, positions: jax.Array, key_positions: jax.Array):
        """Returns `q + u` and the bias `(q + v) . W r`, [B, N, L, S], not yet scaled by 1/sqrt(head size)."""
        L, S = q.shape[1], key_positions.shape[-1]
        # Distances i - j of all pairs lie in (-S, L) when positions are indices; packed segments restart their
        # positions, which only makes them smaller. Cached queries stand at most S - 1 away.
        reach = max(L, S)
        distances = jnp.arange(-reach + 1, reach, dtype=jnp.float32)
        sinusoids = _sinusoids(distances, self.embed_dim).astype(self.dtype)
        r_RNH = matmul(sinusoids, self.kernel.astype(self.dtype), ("embed", "heads", "kv"))
        by_distance = jnp.einsum("BLNH,RNH->BNLR", q + self.position_bias.astype(q.dtype), r_RNH)
        offset = positions[..., :, None] - key_positions[..., None, :] + reach - 1
        offset = jnp.broadcast_to(jnp.clip(offset, 0, 2 * reach - 2)[:, None], (*by_distance.shape[:3], S))
        bias = jnp.take_along_axis(by_distance, offset, axis=-1)
        return q + self.content_bias.astype(q.dtype), bias


class LearnedPositions(nn.Module):
    """A table of positions added to the token embeddings (GPT-3)."""

    max_length: int
    embed_dim: int
    table_init: Initializer = Normal(0.02)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, positions: jax.Array) -> jax.Array:
        """Rows [B or 1, L, D] of the table for positions [B or 1, L], each below `max_length`."""
        draw = nn.with_logical_partitioning(
            lambda key, shape, dtype: self.table_init(key, shape, dtype, 1), (None, "embed")
        )
        table = self.param("embedding", draw, (self.max_length, self.embed_dim), self.param_dtype)
        return lookup(table, positions, (None, "embed"), self.dtype)


def _sinusoids(distances: jax.Array, dim: int) -> jax.Array:
    """[R, dim]: sines then cosines of `distance / 10000^(2i/dim)` (Vaswani et al. 2017)."""
    frequencies = 10000.0 ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    angles = distances[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, :dim]
