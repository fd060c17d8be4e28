"""The arithmetic of merges on lazy arrays: several tensors of one shape become one, a block at a time.

What a merge must know of a whole matrix (an angle, a quantile) is found by streaming that matrix once or twice, when
its first block is asked for. A "matrix" is one index of the leading dimensions that count layers and experts: a stack
is not one tensor, because the layers in it never were.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t5x_scale.core import lazy
from t5x_scale.core.lazy import LazyArray, Region
from t5x_scale.core.mixing import GOLDEN, mix

BLOCK_BYTES = 32 * 2**20
PART_ELEMENTS = 2**18
# Matrices up to this size are ranked in memory.
RANKED_ELEMENTS = 2**24


def in_parts(array: LazyArray, max_elements: int = PART_ELEMENTS) -> LazyArray:
    """The same array, computed in pieces: what a reader needs for intermediate values is bounded by their size."""

    def fill(region: Region, out: np.ndarray) -> None:
        if out.size <= max_elements:
            out[...] = array.read(region)
            return
        axis = next(axis for axis, size in enumerate(out.shape) if size > 1)
        part, middle = region[axis], out.shape[axis] // 2
        for piece in (slice(0, middle), slice(middle, out.shape[axis])):
            inside = slice(part.start + piece.start, part.start + piece.stop)
            fill((*region[:axis], inside, *region[axis + 1 :]), out[(*(slice(None),) * axis, piece)])

    def read(region: Region) -> np.ndarray:
        out = np.empty([part.stop - part.start for part in region], array.dtype)
        fill(region, out)
        return out

    return LazyArray(array.shape, array.dtype, read, array.outer)


def weighted_sum(arrays: Sequence[LazyArray], weights: Sequence[float], dtype: Any) -> LazyArray:
    """`sum_i weights[i] * arrays[i]`, summed in float64: weights of 0 and 1 give an array bit for bit."""
    pairs = [(array, float(weight)) for array, weight in zip(arrays, weights, strict=True) if weight]
    first, dtype = arrays[0], lazy.to_dtype(dtype)

    def read(region: Region) -> np.ndarray:
        total = np.zeros([part.stop - part.start for part in region], np.float64)
        for array, weight in pairs:
            total += weight * array.read(region).astype(np.float64)
        return total.astype(dtype)

    return in_parts(LazyArray(first.shape, dtype, read, first.outer))


def slerp(first: LazyArray, second: LazyArray, t: float, stacked: int, nearly: float) -> LazyArray:
    """Spherical interpolation (Shoemake 1985) from `first` at 0 to `second` at 1, each matrix for itself.

    Args:
      t: how far to go.
      stacked: number of leading dimensions that count matrices.
      nearly: matrices whose cosine is beyond this, up or down, are interpolated linearly: the arc is a line there,
        or has no direction.
    """

    @functools.cache
    def shares(index: tuple[int, ...]) -> tuple[float, float]:
        return _arc(cosine(_matrix(first, index), _matrix(second, index)), t, nearly)

    def read_matrix(index: tuple[int, ...], region: Region) -> np.ndarray:
        pair = [_matrix(first, index), _matrix(second, index)]
        return weighted_sum(pair, shares(index), first.dtype).read(region)

    return _by_matrix(first, first.dtype, stacked, read_matrix)


def _arc(cos: float, t: float, nearly: float) -> tuple[float, float]:
    if abs(cos) > nearly:
        return 1.0 - t, t
    angle = math.acos(cos)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def cosine(first: LazyArray, second: LazyArray) -> float:
    """The cosine of the angle between two arrays as vectors, streamed; 1 where one of them is zero."""
    dot = left = right = 0.0
    for region in lazy.blocks(first, BLOCK_BYTES):
        a, b = (array.read(region).astype(np.float64).ravel() for array in (first, second))
        dot, left, right = dot + a @ b, left + a @ a, right + b @ b
    return float(dot / math.sqrt(left * right)) if left and right else 1.0


def difference(model: LazyArray, base: LazyArray) -> LazyArray:
    """`model - base` in float32: a task vector (Ilharco et al. 2022, arXiv 2212.04089)."""
    return lazy.elementwise(lambda a, b: a.astype(np.float32) - b.astype(np.float32), model, base, dtype="float32")


def trim(array: LazyArray, density: float, stacked: int) -> LazyArray:
    """Zero but for the largest `density` of each matrix by magnitude; equals of the smallest kept one are kept.

    Args:
      array: float32.
      density: share that is kept, of each matrix; at least one element is.
      stacked: number of leading dimensions that count matrices.
    """
    if density >= 1.0:
        return array
    count = max(1, round(density * math.prod(array.shape[stacked:])))

    @functools.cache
    def threshold(index: tuple[int, ...]) -> np.float32:
        return largest_magnitude(_matrix(array, index), count)

    def read_matrix(index: tuple[int, ...], region: Region) -> np.ndarray:
        block = _matrix(array, index).read(region)
        return block * (np.abs(block) >= threshold(index))

    return _by_matrix(array, array.dtype, stacked, read_matrix)


def largest_magnitude(array: LazyArray, count: int) -> np.float32:
    """The `count`-th largest absolute value of a float32 array: exact, in 64 MiB or two passes.

    Floats that are not negative are ordered as their bits are, so the upper half of the bits is counted first, and
    then the lower half of those whose upper half is the one in which the `count`-th lies.
    """
    if array.size <= RANKED_ELEMENTS:
        return np.partition(np.abs(array.read()).ravel(), array.size - count)[array.size - count]
    upper, left = _rank_from_top(_count_bits(array, lambda bits: bits >> 16), count)
    lower, _ = _rank_from_top(_count_bits(array, lambda bits: (bits & 0xFFFF)[bits >> 16 == upper]), left)
    return np.uint32(upper << 16 | lower).view(np.float32)


def _count_bits(array: LazyArray, choose: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    counts = np.zeros(2**16, np.int64)
    for region in lazy.blocks(array, BLOCK_BYTES):
        bits = np.abs(array.read(region)).ravel().view(np.uint32)
        counts += np.bincount(choose(bits), minlength=2**16)
    return counts


def _rank_from_top(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The bucket in which the `rank`-th from the top lies, and its rank in the bucket."""
    above = np.cumsum(counts[::-1])
    position = int(np.searchsorted(above, rank))
    return len(counts) - 1 - position, rank - int(above[position] - counts[::-1][position])


def consensus(deltas: Sequence[LazyArray], weights: Sequence[float]) -> LazyArray:
    """TIES' elected sign and disjoint mean (Yadav et al. 2023, arXiv 2306.01708, algorithm 1), weighted.

    Each element's sign is that of the weighted sum; its value is the weighted mean of those deltas that have this
    sign, zeros not counted; 0 where the sum is.
    """
    first = deltas[0]

    def read(region: Region) -> np.ndarray:
        # The sums of what is positive and of what is negative, and of the weights of either.
        sums = np.zeros((2, *(part.stop - part.start for part in region)), np.float32)
        shares = np.zeros_like(sums)
        for array, weight in zip(deltas, weights, strict=True):
            block, weight = array.read(region), np.float32(weight)
            sums[0] += weight * np.maximum(block, 0)
            sums[1] += weight * np.minimum(block, 0)
            shares[0] += weight * (block > 0)
            shares[1] += weight * (block < 0)
        means = sums / np.where(shares > 0, shares, np.float32(1.0))
        total = sums[0] + sums[1]
        return means[0] * (total > 0) + means[1] * (total < 0)

    return in_parts(LazyArray(first.shape, np.dtype(np.float32), read, first.outer))


def drop(array: LazyArray, rate: float, seed: int, name: str) -> LazyArray:
    """Each element is 0 with probability `rate`, else divided by `1 - rate` (Yu et al. 2023, arXiv 2311.03099).

    Which are dropped is a pure function of (seed, name, index), in whatever blocks the array is read.
    """
    if rate == 0.0:
        return array
    keep = np.float32(1.0 / (1.0 - rate))
    return in_parts(
        lazy.elementwise(
            lambda block, dropped: block * np.where(dropped, np.float32(0.0), keep),
            array,
            coins(array.shape, rate, seed, name),
        )
    )


def coins(shape: Sequence[int], probability: float, seed: int, name: str) -> LazyArray:
    """Booleans that are true with a probability, each a hash of (seed, name, index).

    The hash is that of `core.mixing` over the index in row-major order: counters need no stream for each row, so a
    stack of thin matrices costs no more than a table.
    """
    shape = tuple(shape)
    key = np.frombuffer(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "<u8")[0]

    def read(region: Region) -> np.ndarray:
        index = np.full((), key, np.uint64)
        for axis, part in enumerate(region):
            stride = np.uint64(math.prod(shape[axis + 1 :]))
            index = index[..., None] + np.arange(part.start, part.stop, dtype=np.uint64) * stride
        return mix(index * GOLDEN) >> np.uint64(11) < np.uint64(probability * 2**53)

    return LazyArray(shape, np.dtype(bool), read)


def _matrix(array: LazyArray, index: tuple[int, ...]) -> LazyArray:
    """One index of the leading dimensions, which are gone from the result."""
    for position in index:
        array = lazy.select(array, 0, position)
    return array


def _by_matrix(
    like: LazyArray, dtype: Any, stacked: int, read_matrix: Callable[[tuple[int, ...], Region], np.ndarray]
) -> LazyArray:
    """An array of the shape of `like` each of whose matrices is read for itself."""

    def read(region: Region) -> np.ndarray:
        block = np.empty([part.stop - part.start for part in region], dtype)
        for offset in np.ndindex(block.shape[:stacked]):
            index = tuple(part.start + at for part, at in zip(region[:stacked], offset, strict=True))
            block[offset] = read_matrix(index, region[stacked:])
        return block

    return in_parts(LazyArray(like.shape, lazy.to_dtype(dtype), read, like.outer))
