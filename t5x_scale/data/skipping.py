"""Rows that a run jumps over, such as those that came before a loss spike."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from t5x_scale.core.errors import UserError


class SkipList:
    """Intervals [first, end) of global rows that are never delivered.

    A run counts the rows it consumes: 0, 1, 2, .... Global rows are what those would be with nothing skipped; the map
    from one to the other is a look-up.

    Attributes:
      intervals: sorted, disjoint and not touching.
    """

    def __init__(self, intervals: Iterable[Sequence[int]] = ()):
        """Args:
          intervals: pairs (first row, one past the last row); they may overlap and come in any order.

        Raises:
          UserError: an interval is empty, negative or not a pair of whole numbers.
        """
        merged: list[tuple[int, int]] = []
        for first, end in sorted(_check_interval(interval) for interval in intervals):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((first, end))
        self.intervals = tuple(merged)
        lengths = np.array([end - first for first, end in merged], np.int64)
        self._jumped = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        # The consumed row at which each interval is met.
        self._met = np.array([first for first, _ in merged], np.int64) - self._jumped[:-1]

    def to_global(self, consumed: np.ndarray) -> np.ndarray:
        """Global rows, int64 [n], of the rows that a run consumes, int64 [n]."""
        consumed = np.asarray(consumed, np.int64)
        return consumed + self._jumped[np.searchsorted(self._met, consumed, side="right")]

    def end(self, rows: int) -> int:
        """One past the last global row of a run that has consumed `rows` rows."""
        return int(self.to_global(np.array([rows - 1]))[0]) + 1 if rows else 0

    def delivered(self, rows_before: Callable[[int], np.ndarray], begin: int, end: int) -> np.ndarray:
        """Counts of the global rows [begin, end) without those that are skipped, given counts of the rows [0, n)."""
        counts = rows_before(end) - rows_before(begin)
        for low, high in self.intervals:
            low, high = min(max(low, begin), end), min(max(high, begin), end)
            counts = counts - rows_before(high) + rows_before(low)
        return counts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SkipList) and self.intervals == other.intervals

    def __hash__(self) -> int:
        return hash(self.intervals)


def _check_interval(interval: Sequence[int]) -> tuple[int, int]:
    try:
        first, end = (operator.index(bound) for bound in interval)
    except (TypeError, ValueError) as error:
        raise UserError(f"a skipped interval is a pair (first row, one past the last row), not {interval!r}") from error
    if not 0 <= first < end:
        raise UserError(f"the skipped interval ({first}, {end}) holds no rows")
    return first, end
