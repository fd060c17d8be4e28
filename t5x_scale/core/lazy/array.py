"""What a lazy array is, and the blocks in which it is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np

Region = tuple[slice, ...]


_NARROW = {
    name: np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4")
}


def to_dtype(name: Any) -> np.dtype:
    """The numpy dtype called `name`, the narrow floats of accelerators included."""
    return _NARROW[name] if isinstance(name, str) and name in _NARROW else np.dtype(name)


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray:
    """An array that is read in boxes.

    Attributes:
      shape: sizes of all dimensions.
      dtype: of what is read.
      reader: `region -> numpy array` of the region's shape.
      outer: dimensions in the order in which blocks should be cut: from the slowest in the file on. Those not
        named are cut only after them.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    reader: Callable[[Region], np.ndarray]
    outer: tuple[int, ...] = (0,)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    def read(self, region: Sequence[slice] | None = None) -> np.ndarray:
        """The elements of `region` (open ends as in numpy; all of them by default), not to be written to."""
        box = normalize(region, self.shape)
        block = self.reader(box)
        expected = tuple(part.stop - part.start for part in box)
        if block.shape != expected or block.dtype != self.dtype:
            raise ValueError(f"a reader gave {block.dtype}{list(block.shape)}, not {self.dtype}{list(expected)}")
        return block


def normalize(region: Sequence[slice] | None, shape: Sequence[int]) -> Region:
    """`region` with starts and stops, one a dimension."""
    parts = tuple(region or ()) + (slice(None),) * (len(shape) - len(region or ()))
    if len(parts) != len(shape):
        raise ValueError(f"a region of {len(parts)} slices for {len(shape)} dimensions")
    box = tuple(slice(*part.indices(size)[:2]) for part, size in zip(parts, shape, strict=True))
    return tuple(slice(part.start, max(part.start, part.stop)) for part in box)


def blocks(array: LazyArray, max_bytes: int) -> Iterator[Region]:
    """Regions that tile the array in reading order, each of at most `max_bytes` where one element allows it."""
    yield from _tile(_reading_order(array), array.shape, block_shape(array, max_bytes))


def block_shape(array: LazyArray, max_bytes: int) -> tuple[int, ...]:
    """The shape of the first of `blocks`; the others are on its grid. Cut dimensions are cut into even parts."""
    steps = list(array.shape)
    for axis in _reading_order(array):
        others = math.prod(steps[:axis] + steps[axis + 1 :]) * array.dtype.itemsize
        step = max(1, min(array.shape[axis], max_bytes // max(others, 1)))
        parts = max(1, -(-array.shape[axis] // step))
        steps[axis] = max(1, -(-array.shape[axis] // parts))
        if steps[axis] * others <= max_bytes:
            break
    return tuple(steps)


def _reading_order(array: LazyArray) -> tuple[int, ...]:
    named = tuple(axis for axis in array.outer if axis < array.ndim)  # A single number has none.
    return (*named, *(axis for axis in range(array.ndim) if axis not in named))


def _tile(order: Sequence[int], shape: Sequence[int], steps: Sequence[int]) -> Iterator[Region]:
    region = [slice(0, size) for size in shape]

    def visit(depth: int) -> Iterator[Region]:
        if depth == len(order):
            yield tuple(region)
            return
        axis = order[depth]
        for start in range(0, shape[axis], max(1, steps[axis])):
            region[axis] = slice(start, min(start + steps[axis], shape[axis]))
            yield from visit(depth + 1)

    yield from visit(0)


def sizes_of(region: Sequence[slice]) -> tuple[int, ...]:
    """The shape of a region."""
    return tuple(part.stop - part.start for part in region)
