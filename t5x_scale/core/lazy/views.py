"""Lazy arrays made of others: turned, cut, joined, computed element by element."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t5x_scale.core.lazy.array import LazyArray, Region, sizes_of, to_dtype

# Reads of fewer bytes than this cost about as much as one of them.
_PICKED_BYTES = 1 << 16


def transpose(array: LazyArray, order: Sequence[int]) -> LazyArray:
    """Dimension i of the result is dimension `order[i]` of `array`."""
    order = tuple(order)

    def read(region: Region) -> np.ndarray:
        source = [slice(0, 0)] * array.ndim
        for axis, part in zip(order, region, strict=True):
            source[axis] = part
        return array.read(source).transpose(order)

    shape = tuple(array.shape[axis] for axis in order)
    return LazyArray(shape, array.dtype, read, tuple(order.index(axis) for axis in array.outer))


def split_axis(array: LazyArray, axis: int, sizes: Sequence[int]) -> LazyArray:
    """Dimension `axis` becomes several, in row-major order.

    Raises:
      ValueError: the sizes do not multiply to the dimension.
    """
    sizes = tuple(sizes)
    if math.prod(sizes) != array.shape[axis]:
        raise ValueError(f"a dimension of {array.shape[axis]} does not split into {list(sizes)}")
    inner = math.prod(sizes[1:])

    def read(region: Region) -> np.ndarray:
        first, *rest = region[axis : axis + len(sizes)]
        others = region[:axis], region[axis + len(sizes) :]
        if rest and first.start < first.stop and _is_worth_picking(rest[0], sizes[1], inner, others, array.dtype):
            parts = [read_one(index, rest, *others) for index in range(first.start, first.stop)]
            return np.concatenate(parts, axis=axis)
        rows = slice(first.start * inner, first.stop * inner)
        block = array.read((*others[0], rows, *others[1]))
        block = block.reshape(*block.shape[:axis], first.stop - first.start, *sizes[1:], *block.shape[axis + 1 :])
        return block[(*(slice(None),) * (axis + 1), *rest)]

    def read_one(index: int, rest: Sequence[slice], before: Region, after: Region) -> np.ndarray:
        """At one index of the first of the new dimensions, where what is wanted of the second lies together."""
        wanted, rows_each = rest[0], inner // sizes[1]
        rows = slice(index * inner + wanted.start * rows_each, index * inner + wanted.stop * rows_each)
        block = array.read((*before, rows, *after))
        block = block.reshape(*block.shape[:axis], 1, wanted.stop - wanted.start, *sizes[2:], *block.shape[axis + 1 :])
        return block[(*(slice(None),) * (axis + 2), *rest[1:])]

    shape = (*array.shape[:axis], *sizes, *array.shape[axis + 1 :])
    outer = tuple(a if a <= axis else a + len(sizes) - 1 for a in array.outer)
    return LazyArray(shape, array.dtype, read, outer)


def _is_worth_picking(wanted: slice, size: int, rows: int, others: Sequence[Region], dtype: np.dtype) -> bool:
    """Whether reading a part of a dimension index by index saves more than the further reads cost."""
    count = wanted.stop - wanted.start
    row_bytes = math.prod(math.prod(sizes_of(region)) for region in others) * dtype.itemsize
    return 0 < 2 * count <= size and rows // size * count * row_bytes >= _PICKED_BYTES


def merge_axes(array: LazyArray, axis: int, count: int) -> LazyArray:
    """The inverse of `split_axis`: `count` dimensions from `axis` on become one."""
    sizes = array.shape[axis : axis + count]
    inner = math.prod(sizes[1:])

    def read(region: Region) -> np.ndarray:
        part = region[axis]
        first = part.start // max(inner, 1)
        last = max(first, -(-part.stop // max(inner, 1)))
        whole = (slice(0, size) for size in sizes[1:])
        block = array.read((*region[:axis], slice(first, last), *whole, *region[axis + 1 :]))
        block = block.reshape(*block.shape[:axis], (last - first) * inner, *block.shape[axis + count :])
        rows = slice(part.start - first * inner, part.stop - first * inner)
        return block[(*(slice(None),) * axis, rows)]

    shape = (*array.shape[:axis], math.prod(sizes), *array.shape[axis + count :])
    outer = tuple(dict.fromkeys(_merged(a, axis, count) for a in array.outer))
    return LazyArray(shape, array.dtype, read, outer)


def _merged(dimension: int, axis: int, count: int) -> int:
    if dimension < axis:
        return dimension
    return axis if dimension < axis + count else dimension - count + 1


def take_slice(array: LazyArray, axis: int, start: int, stop: int) -> LazyArray:
    """The indices `start` ... `stop - 1` of one dimension."""
    if not 0 <= start <= stop <= array.shape[axis]:
        raise ValueError(f"[{start}, {stop}) is outside a dimension of {array.shape[axis]}")

    def read(region: Region) -> np.ndarray:
        part = slice(region[axis].start + start, region[axis].stop + start)
        return array.read((*region[:axis], part, *region[axis + 1 :]))

    shape = (*array.shape[:axis], stop - start, *array.shape[axis + 1 :])
    return LazyArray(shape, array.dtype, read, array.outer)


def take(array: LazyArray, axis: int, indices: Sequence[int] | np.ndarray) -> LazyArray:
    """Index i of dimension `axis` of the result is index `indices[i]` of `array`.

    Raises:
      ValueError: an index is outside.
    """
    indices = np.asarray(indices, np.int64).reshape(-1)
    if indices.size and not (indices.min() >= 0 and indices.max() < array.shape[axis]):
        raise ValueError(f"indices {indices.min()} to {indices.max()} into a dimension of {array.shape[axis]}")

    def read_range(region: Region, start: int, stop: int) -> np.ndarray:
        return array.read((*region[:axis], slice(start, stop), *region[axis + 1 :]))

    def read(region: Region) -> np.ndarray:
        wanted = indices[region[axis]]
        if not wanted.size:
            return read_range(region, 0, 0)
        low, high = int(wanted.min()), int(wanted.max()) + 1
        if np.array_equal(wanted, np.arange(low, high)):
            return read_range(region, low, high)
        if high - low <= 2 * wanted.size:
            return np.take(read_range(region, low, high), wanted - low, axis=axis)
        ends = np.flatnonzero(np.diff(wanted) != 1) + 1
        runs = np.split(wanted, ends)
        return np.concatenate([read_range(region, int(run[0]), int(run[-1]) + 1) for run in runs], axis=axis)

    shape = (*array.shape[:axis], indices.size, *array.shape[axis + 1 :])
    return LazyArray(shape, array.dtype, read, array.outer)


def select(array: LazyArray, axis: int, index: int) -> LazyArray:
    """One index of a dimension, which is gone from the result."""

    def read(region: Region) -> np.ndarray:
        return array.read((*region[:axis], slice(index, index + 1), *region[axis:])).squeeze(axis)

    if not 0 <= index < array.shape[axis]:
        raise ValueError(f"index {index} is outside a dimension of {array.shape[axis]}")
    outer = tuple(a - (a > axis) for a in array.outer if a != axis) or (0,)
    return LazyArray((*array.shape[:axis], *array.shape[axis + 1 :]), array.dtype, read, outer)


def stack(arrays: Sequence[LazyArray], axis: int = 0) -> LazyArray:
    """Arrays of one shape and dtype side by side along a new dimension."""
    first = _check_alike(arrays)
    expanded = [expand(array, axis) for array in arrays]
    outer = (axis, *(a + (a >= axis) for a in first.outer))
    return dataclasses.replace(concatenate(expanded, axis), outer=outer)


def expand(array: LazyArray, axis: int) -> LazyArray:
    """A new dimension of size 1 at `axis`."""

    def read(region: Region) -> np.ndarray:
        block = np.expand_dims(array.read((*region[:axis], *region[axis + 1 :])), axis)
        return block[(*(slice(None),) * axis, region[axis])]

    shape = (*array.shape[:axis], 1, *array.shape[axis:])
    return LazyArray(shape, array.dtype, read, tuple(a + (a >= axis) for a in array.outer) or (axis,))


def concatenate(arrays: Sequence[LazyArray], axis: int) -> LazyArray:
    """Arrays one after another along `axis`; all other dimensions and the dtype are equal."""
    arrays = tuple(arrays)
    first = _check_alike(arrays, but=axis)
    ends = np.cumsum([array.shape[axis] for array in arrays])

    def read(region: Region) -> np.ndarray:
        part, parts = region[axis], []
        for array, end in zip(arrays, ends.tolist(), strict=True):
            begin = end - array.shape[axis]
            low, high = max(part.start, begin), min(part.stop, end)
            if low < high:
                parts.append(array.read((*region[:axis], slice(low - begin, high - begin), *region[axis + 1 :])))
        if not parts:
            return np.empty(sizes_of(region), first.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)

    shape = (*first.shape[:axis], int(ends[-1]), *first.shape[axis + 1 :])
    return LazyArray(shape, first.dtype, read, first.outer)


def elementwise(function: Callable[..., np.ndarray], *arrays: LazyArray, dtype: Any = None) -> LazyArray:
    """`function` of the blocks of arrays of one shape, cast to `dtype` (the first array's by default)."""
    first = arrays[0]
    for array in arrays:
        if array.shape != first.shape:
            raise ValueError(f"shapes {list(first.shape)} and {list(array.shape)} differ")
    dtype = first.dtype if dtype is None else to_dtype(dtype)

    def read(region: Region) -> np.ndarray:
        return np.asarray(function(*(array.read(region) for array in arrays))).astype(dtype, copy=False)

    return LazyArray(first.shape, dtype, read, first.outer)


def cast(array: LazyArray, dtype: Any) -> LazyArray:
    """The same values in another dtype; the array itself if that is its own."""
    dtype = to_dtype(dtype)
    return array if dtype == array.dtype else elementwise(lambda block: block, array, dtype=dtype)


def scale(array: LazyArray, factor: float) -> LazyArray:
    """`factor` times the array, multiplied in float32; the array itself if the factor is 1."""
    if factor == 1.0:
        return array
    return elementwise(lambda block: block.astype(np.float32) * np.float32(factor), array)


def mean(array: LazyArray, axis: int, max_bytes: int = 64 * 2**20) -> LazyArray:
    """The mean along `axis`, which becomes a dimension of 1; read in parts of about `max_bytes`, summed in float64.

    Raises:
      ValueError: the dimension has no elements.
    """
    count = array.shape[axis]
    if not count:
        raise ValueError("a dimension of 0 has no mean")

    def read(region: Region) -> np.ndarray:
        sizes = sizes_of(region)
        total = np.zeros(sizes, np.float64)
        step = max(1, max_bytes // max(1, math.prod(sizes) * np.dtype(np.float64).itemsize))
        for start in range(0, count if total.size else 0, step):
            part = slice(start, min(start + step, count))
            block = array.read((*region[:axis], part, *region[axis + 1 :]))
            total += block.sum(axis=axis, keepdims=True, dtype=np.float64)
        return (total / count).astype(array.dtype)

    return LazyArray((*array.shape[:axis], 1, *array.shape[axis + 1 :]), array.dtype, read, array.outer)


def _check_alike(arrays: Sequence[LazyArray], but: int | None = None) -> LazyArray:
    first = arrays[0]
    for array in arrays:
        same = array.ndim == first.ndim and all(
            axis == but or left == right
            for axis, (left, right) in enumerate(zip(array.shape, first.shape, strict=True))
        )
        if not same or array.dtype != first.dtype:
            raise ValueError(f"{array.dtype}{list(array.shape)} does not join {first.dtype}{list(first.shape)}")
    return first
