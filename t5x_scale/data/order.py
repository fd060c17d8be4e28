"""The order in which a source's windows are read: a permutation that is computed, never stored."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable

import numpy as np

# The cipher behind the permutation takes 32-bit indices: above this two indices share an image.
MAX_SIZE = 2**32
# Fewest rounds the cipher accepts. Part of the format of a run: another number is another order.
_ROUNDS = 4


@functools.cache
def load_index_shuffle() -> Callable[[int, int, int, int], int]:
    """Imports the permutation behind `permute`: (index, last index, 32-bit key, rounds) -> index.

    Importing grain takes half a second beyond jax, so configurations do not pay for it; delivery calls this when it
    opens rather than with its first batch.
    """
    from grain.experimental import index_shuffle

    return index_shuffle


def order_key(seed: int, epoch: int, source: str) -> int:
    """The 32-bit key of one epoch's order of one source; a hash, so that no two arguments share a pattern."""
    text = f"{seed}/{epoch}/{source}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "little")


def permute(indices: np.ndarray, size: int, key: int) -> np.ndarray:
    """Maps indices through the permutation of [0, size) that `key` selects.

    Args:
      indices: int64 [n], each in [0, size).
      size: number of elements permuted, at most `MAX_SIZE`.
      key: from `order_key`.

    Returns:
      int64 [n]; about 4 microseconds an element, no memory that grows with `size`.

    Raises:
      ValueError: `size` is beyond `MAX_SIZE`, or an index is outside [0, size).
    """
    if not 0 < size <= MAX_SIZE:
        raise ValueError(f"cannot permute {size} elements: the number must be in [1, {MAX_SIZE}]")
    shuffle = load_index_shuffle()
    last = size - 1
    return np.array([shuffle(index, last, key, _ROUNDS) for index in indices.tolist()], dtype=np.int64)


def to_rows(rows: np.ndarray | slice, size: int) -> np.ndarray:
    """Row numbers in a batch of `size`, int64, from a slice of it or from themselves."""
    return np.arange(*rows.indices(size)) if isinstance(rows, slice) else np.asarray(rows, np.int64)
