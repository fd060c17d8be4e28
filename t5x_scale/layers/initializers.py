"""Initialisers: `(key, shape, dtype, fan_in) -> array`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import jax


class Initializer(Protocol):
    """Draws one tensor; `fan_in` is the number of inputs that are summed into one output."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any, fan_in: int) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Normal:
    """N(0, stddev^2), whatever the shape."""

    stddev: float = 0.02

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any, fan_in: int) -> jax.Array:
        del fan_in
        return self.stddev * jax.random.normal(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class FanIn:
    """N(0, scale / fan_in): the fan-in variance scaling of PaLM's kernels (PaLM, section 5)."""

    scale: float = 1.0

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any, fan_in: int) -> jax.Array:
        return math.sqrt(self.scale / fan_in) * jax.random.normal(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class DepthScaled:
    """N(0, stddev^2 / (2 num_layers)): GPT-2's matrices that write into the residual stream, two a layer."""

    num_layers: int
    stddev: float = 0.02

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any, fan_in: int) -> jax.Array:
        del fan_in
        return self.stddev / math.sqrt(2 * self.num_layers) * jax.random.normal(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Wang:
    """N(0, 4 / (num_layers^2 embed_dim)): GPT-NeoX's `wang_init`, for the same matrices."""

    num_layers: int
    embed_dim: int

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any, fan_in: int) -> jax.Array:
        del fan_in
        return 2 / (self.num_layers * math.sqrt(self.embed_dim)) * jax.random.normal(key, shape, dtype)
