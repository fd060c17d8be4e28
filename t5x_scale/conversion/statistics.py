"""Numbers about lazy tensors, in one pass over blocks that fit in memory."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from t5x_scale.checkpoint import integrity
from t5x_scale.core.lazy import LazyArray, blocks

_BLOCK_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of one tensor.

    Attributes:
      rms: root mean square of the finite elements.
      mean: of the finite elements.
      max_abs: the largest magnitude among them.
      not_finite: how many elements are NaN or infinite.
      fingerprint: 16 hexadecimal digits, as checkpoints have them on record: equal where all bits are.
    """

    rms: float
    mean: float
    max_abs: float
    not_finite: int
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two tensors of one shape, computed in float64.

    Attributes:
      is_equal: all values are equal, NaN equal to NaN.
      max_abs: the largest difference.
      relative: norm of the difference over the norm of the first tensor; infinite where only that is zero.
    """

    is_equal: bool
    max_abs: float
    relative: float


def describe_tensor(array: LazyArray) -> Statistics:
    """Reads all of a tensor once."""
    total = squares = largest = 0.0
    not_finite, fingerprints = 0, []
    for region in blocks(array, _BLOCK_BYTES):
        block = array.read(region)
        fingerprints.append(integrity.fingerprint_region(block, region, array.shape))
        values = block.astype(np.float64).ravel()
        finite = np.isfinite(values)
        if not finite.all():
            not_finite += int(values.size - finite.sum())
            values = values[finite]
        total += float(values.sum())
        squares += float(np.dot(values, values))
        largest = max(largest, float(np.abs(values).max(initial=0.0)))
    count = max(array.size - not_finite, 1)
    fingerprint = integrity.to_text(integrity.combine(fingerprints))
    return Statistics(math.sqrt(squares / count), total / count, largest, not_finite, fingerprint)


def compare_tensors(left: LazyArray, right: LazyArray) -> Difference:
    """Reads all of both tensors once.

    Raises:
      ValueError: their shapes differ.
    """
    if left.shape != right.shape:
        raise ValueError(f"shapes {list(left.shape)} and {list(right.shape)} differ")
    is_equal, largest, squares, norm = True, 0.0, 0.0, 0.0
    for region in blocks(left, _BLOCK_BYTES):
        first, second = (array.read(region).astype(np.float64).ravel() for array in (left, right))
        is_equal = is_equal and np.array_equal(first, second, equal_nan=True)
        gap = np.where(np.isnan(first) & np.isnan(second), 0.0, first - second)
        largest = max(largest, float(np.abs(gap).max(initial=0.0)))
        squares += float(np.dot(gap, gap))
        norm += float(np.nansum(first * first))
    relative = 0.0 if squares == 0.0 else math.inf if norm == 0.0 else math.sqrt(squares / norm)
    return Difference(is_equal, largest, relative)
