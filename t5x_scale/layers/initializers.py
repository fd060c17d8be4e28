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
