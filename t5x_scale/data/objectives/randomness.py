"""Random choices from a generator's raw words.

Only `random_raw` is used: NumPy promises that stream for ever, while the methods of `Generator` may change between
versions, and with them every batch of a run.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def draw_words(generators: Iterable[np.random.Generator], count: int) -> np.ndarray:
    """The next `count` random words of each generator, uint64 [rows, count]."""
    rows = [generator.bit_generator.random_raw(count) for generator in generators]
    return np.array(rows, np.uint64).reshape(len(rows), count)


def to_unit(words: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), float64, one a word."""
    return (words >> np.uint64(11)) * 2.0**-53


def to_below(words: np.ndarray, bounds: np.ndarray | int) -> np.ndarray:
    """Uniform integers in [0, bound), int64, one a word; every bound is in [1, 2^31].

    The probabilities of two results differ by less than bound / 2^32 of themselves.
    """
    high = words >> np.uint64(32)
    return ((high * np.asarray(bounds).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def random_subsets(words: np.ndarray, size: int) -> np.ndarray:
    """A uniformly random subset of the columns for each row: those of its smallest words.

    Args:
      words: uint32 [R, n], uniform.
      size: members of a subset, at most n.

    Returns:
      int64 [R, size], ascending along each row.
    """
    if size == 0:
        return np.zeros((len(words), 0), np.int64)
    threshold = np.partition(words, size - 1, axis=1)[:, size - 1 : size]
    chosen = words <= threshold
    found = np.flatnonzero(chosen)
    if len(found) != len(words) * size:
        # Two words are equal just there, about once in a million rows: the first columns win.
        for row in np.flatnonzero(chosen.sum(axis=1) != size):
            chosen[row] = False
            chosen[row, np.argsort(words[row], kind="stable")[:size]] = True
        found = np.flatnonzero(chosen)
    first_of_row = np.arange(len(words)) * words.shape[1]
    return found.reshape(len(words), size) - first_of_row[:, None]
