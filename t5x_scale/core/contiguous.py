"""Row-major copies of turned arrays, in tiles that fit into a processor's nearest cache."""

from __future__ import annotations

import itertools

import numpy as np

# Elements: of a side of a tile, and of a tile. Numpy alone walks across the whole array for each row of the copy,
# which for a weight matrix in bfloat16 takes five to seven times as long.
_SIDE = 128
_TILE = _SIDE * _SIDE


def as_bits(block: np.ndarray) -> np.ndarray:
    """The same memory as unsigned integers, which numpy copies faster than narrow floats, with every bit of a NaN."""
    return block.view(f"u{block.itemsize}") if block.itemsize in (1, 2, 4, 8) else block


def to_contiguous(block: np.ndarray) -> np.ndarray:
    """`block` itself where it lies row-major in memory, else a copy that does."""
    if block.flags.c_contiguous:
        return block
    copy = np.empty(block.shape, block.dtype)
    copy_into(copy, block)
    return copy


def copy_into(target: np.ndarray, block: np.ndarray) -> None:
    """Writes `block` over `target`, of the same shape and dtype, which should lie row-major in memory."""
    source, target = as_bits(block), as_bits(target)
    if source.flags.c_contiguous:
        target[...] = source
        return
    for tile in itertools.product(*_tiles(block)):
        target[tile] = source[tile]


def _tiles(block: np.ndarray) -> list[list[slice]]:
    """For each dimension the slices it is cut into: short ones for its nearest in the source and in the copy."""
    sizes = block.shape
    last = block.ndim - 1
    nearest = min(range(block.ndim), key=lambda axis: (sizes[axis] == 1, abs(block.strides[axis]), -axis))
    if nearest == last:
        return [[slice(None)]] * block.ndim
    steps = dict.fromkeys((nearest, last), _SIDE)
    room = _TILE // (min(sizes[nearest], _SIDE) * min(sizes[last], _SIDE))
    for axis in sorted(set(range(block.ndim)) - steps.keys(), key=lambda axis: abs(block.strides[axis])):
        steps[axis] = max(1, min(sizes[axis], room))
        room //= steps[axis]
    return [[slice(i, i + steps[axis]) for i in range(0, size, steps[axis])] for axis, size in enumerate(sizes)]
