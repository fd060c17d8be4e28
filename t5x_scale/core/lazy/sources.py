"""Lazy arrays that begin somewhere: in memory, as one value, or drawn at random."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t5x_scale.core.lazy.array import LazyArray, Region, sizes_of, to_dtype


def from_array(array: np.ndarray) -> LazyArray:
    """An array that is in memory."""
    return LazyArray(array.shape, array.dtype, lambda region: array[region])


def full(shape: Sequence[int], dtype: Any, value: float = 0.0) -> LazyArray:
    """`value` everywhere."""
    dtype = to_dtype(dtype)
    return LazyArray(tuple(shape), dtype, lambda region: np.full(sizes_of(region), value, dtype))


def normal(shape: Sequence[int], dtype: Any, stddev: float, seed: int, name: str) -> LazyArray:
    """N(0, stddev^2), a pure function of (seed, name, index): the same in whatever blocks it is read.

    Args:
      shape: each index of all but the last dimension has a random stream of its own.
      dtype: drawn in float32 and then cast.
      stddev: standard deviation.
      seed: of the whole conversion.
      name: of this tensor, so that two of one seed differ.
    """
    return _drawn(
        shape, dtype, seed, name, lambda generator, size: stddev * generator.standard_normal(size, np.float32)
    )


def uniform(shape: Sequence[int], seed: int, name: str) -> LazyArray:
    """float32 values from 0 to below 1; arguments as for `normal`."""
    return _drawn(shape, np.float32, seed, name, lambda generator, size: generator.random(size, np.float32))


def _drawn(
    shape: Sequence[int],
    dtype: Any,
    seed: int,
    name: str,
    draw: Callable[[np.random.Generator, int], np.ndarray],
) -> LazyArray:
    """`draw(generator, size)` along the last dimension, with a generator for each index of the others."""
    shape, dtype = tuple(shape), to_dtype(dtype)
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")

    def read(region: Region) -> np.ndarray:
        *leading, last = region
        block = np.empty(sizes_of(region), np.float32)
        for position in np.ndindex(*sizes_of(leading)):
            index = [part.start + offset for part, offset in zip(leading, position, strict=True)]
            row = int(np.ravel_multi_index(index, shape[:-1])) if index else 0
            generator = np.random.Generator(np.random.Philox(key=np.array([key, row], np.uint64)))
            block[position] = draw(generator, last.stop)[last]
        return block.astype(dtype, copy=False)

    return LazyArray(shape, dtype, read)
