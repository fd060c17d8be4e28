"""The order in which a source's rows are read: a permutation that is computed, never stored."""

from __future__ import annotations

import hashlib

import numpy as np

MAX_SIZE = 2**62
# Part of the format of a run: another number is another order. Four rounds of a perfect round function would do
# (Luby and Rackoff 1988); this one is a hash of two multiplications, and small sizes have few bits to mix.
_ROUNDS = 8
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_GOLDEN = 0x9E3779B97F4A7C15


def order_key(seed: int, epoch: int, source: str) -> int:
    """The 64-bit key of one epoch's order of one source; a hash, so that no two arguments share a pattern."""
    text = f"{seed}/{epoch}/{source}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def permute(indices: np.ndarray, size: int, key: int) -> np.ndarray:
    """Maps indices through the permutation of [0, size) that `key` selects.

    A Feistel network over the smallest even number of bits that holds `size`; what lands outside is sent through
    again until it lands inside (cycle walking, Black and Rogaway 2002), 4 times at most on average.

    Args:
      indices: int64 [n], each in [0, size).
      size: number of elements permuted, at most `MAX_SIZE`.
      key: from `order_key`.

    Returns:
      int64 [n]; no memory that grows with `size`.

    Raises:
      ValueError: `size` is beyond `MAX_SIZE`, or an index is outside [0, size).
    """
    indices = np.asarray(indices, np.int64)
    if not 0 < size <= MAX_SIZE:
        raise ValueError(f"cannot permute {size} elements: the number must be in [1, {MAX_SIZE}]")
    if len(indices) and not (indices.min() >= 0 and indices.max() < size):
        raise ValueError(f"an index is outside the {size} elements that are permuted")
    half = max(1, -(-(size - 1).bit_length() // 2))
    keys = _round_keys(key)
    result = indices.astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        result[outside] = _encrypt(result[outside], half, keys)
        outside = outside[result[outside] >= size]
    return result.astype(np.int64)


def _round_keys(key: int) -> np.ndarray:
    """`_ROUNDS` numbers from one, by SplitMix64 (Steele, Lea and Flood 2014)."""
    states = [(key + (number + 1) * _GOLDEN) % 2**64 for number in range(_ROUNDS)]
    return _mix(np.array(states, np.uint64))


def _encrypt(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """A bijection of [0, 4**half), uint64 [n]."""
    shift, top = np.uint64(half), np.uint64(64 - half)
    left, right = values >> shift, values & np.uint64(2**half - 1)
    for key in keys:
        # The high bits are the ones that all lower bits have reached.
        left, right = right, left ^ (_mix(right ^ key) >> top)
    return (left << shift) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the argument."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))


def to_rows(rows: np.ndarray | slice, size: int) -> np.ndarray:
    """Row numbers in a batch of `size`, int64, from a slice of it or from themselves."""
    return np.arange(*rows.indices(size)) if isinstance(rows, slice) else np.asarray(rows, np.int64)
