"""The order in which a source's rows are read: a permutation that is computed, never stored."""

from __future__ import annotations

import hashlib

import numpy as np

from t5x_scale.core.mixing import GOLDEN, mix

MAX_SIZE = 2**62
# Part of the format of a run: another number is another order. Four rounds of a perfect round function would do
# (Luby and Rackoff 1988); this one is a hash of two multiplications, and small sizes have few bits to mix.
_ROUNDS = 8


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
    if not 0 < size <= MAX_SIZE:
        raise ValueError(f"cannot permute {size} elements: the number must be in [1, {MAX_SIZE}]")
    return permute_each(indices, np.array([size]), np.array([key], np.uint64))


def permute_each(indices: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """As `permute`, every index through a permutation of its own: rows of a thousand sources cost what those of one do.

    Args:
      indices: int64 [n], each in [0, its size).
      sizes: int64 [n] or [1], each in [1, `MAX_SIZE`].
      keys: uint64 [n] or [1].

    Returns:
      int64 [n].

    Raises:
      ValueError: as `permute`.
    """
    indices = np.asarray(indices, np.int64)
    if not ((indices >= 0) & (indices < sizes)).all():
        raise ValueError(f"an index is outside the {np.max(sizes)} elements that are permuted")
    # The smallest half >= 1 with 4**half >= size.
    halves = (np.searchsorted(4 ** np.arange(1, 32), sizes) + 1).astype(np.uint64)
    sizes, rounds = sizes.astype(np.uint64), _round_keys(keys)
    result = indices.astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        own = outside if len(sizes) > 1 else slice(None)
        result[outside] = _encrypt(result[outside], halves[own], rounds[:, own])
        outside = outside[result[outside] >= sizes[own]]
    return result.astype(np.int64)


def _round_keys(keys: np.ndarray) -> np.ndarray:
    """`_ROUNDS` numbers from each, uint64 [_ROUNDS, n], by SplitMix64."""
    steps = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * GOLDEN
    return mix(keys + steps[:, None])


def _encrypt(values: np.ndarray, halves: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A bijection of [0, 4**half) for each of `halves`, [n] or [1], uint64 [n]. keys: [_ROUNDS, n or 1]."""
    one = np.uint64(1)
    shift, top = halves, np.uint64(64) - halves
    left, right = values >> shift, values & ((one << halves) - one)
    for key in keys:
        # The high bits are the ones that all lower bits have reached.
        left, right = right, left ^ (mix(right ^ key) >> top)
    return (left << shift) | right


def to_rows(rows: np.ndarray | slice, size: int) -> np.ndarray:
    """Row numbers in a batch of `size`, int64, from a slice of it or from themselves."""
    return np.arange(*rows.indices(size)) if isinstance(rows, slice) else np.asarray(rows, np.int64)
