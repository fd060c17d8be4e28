"""Which source each row of a run comes from: a closed-form schedule of slots.

Rows come in periods of `PERIOD`. A period holds for every source the whole number of slots nearest to its rate,
spread as evenly as whole numbers allow, so the source of any row, and how many of that source's rows came before
it, are two look-ups. All rows have the same length: a share of rows is a share of tokens.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Mapping

import numpy as np

from t5x_scale.core.errors import UserError

# Rates are honoured to one part in this many. Part of the format of a run: another period is another order.
PERIOD = 4096


class Mixture:
    """Sources and their shares of the rows.

    Attributes:
      names: the sources, in the order given.
      rates: their rates, as given.
      slots: int64 [sources], rows of each source in one period.
      shares: float64 [sources], `slots / PERIOD`: the shares that are delivered.
    """

    def __init__(self, rates: Mapping[str, float]):
        """Args:
          rates: {source name: rate}, in any unit; only the proportions count. Every rate must be positive, and
            every source gets at least one slot of the period.

        Raises:
          UserError: no source, more sources than slots, or a rate that is not a positive finite number.
        """
        if not rates:
            raise UserError("the mixture names no source")
        if len(rates) > PERIOD:
            raise UserError(f"the mixture has {len(rates)} sources, at most {PERIOD} are possible")
        for name, rate in rates.items():
            if not (np.isfinite(rate) and rate > 0):
                raise UserError(
                    f"the rate of '{name}' is {rate}; a rate is a positive number (leave a source out instead)"
                )
        self.names = tuple(rates)
        self.rates = tuple(float(rate) for rate in rates.values())
        self.slots = _slot_counts(np.array(self.rates))
        self.shares = self.slots / PERIOD
        self._sources, self._earlier = _interleave(tuple(self.slots.tolist()))

    def slot(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row and the number of earlier rows of that source.

        Args:
          rows: int64 [n], global rows.

        Returns:
          (source index [n], count of that source's rows before this one [n]), both int64.
        """
        period, place = np.divmod(np.asarray(rows, np.int64), PERIOD)
        sources = self._sources[place]
        return sources, period * self.slots[sources] + self._earlier[place]

    def rows_before(self, row: int) -> np.ndarray:
        """int64 [sources]: how many of the rows [0, row) belong to each source."""
        period, place = divmod(int(row), PERIOD)
        return period * self.slots + np.bincount(self._sources[:place], minlength=len(self.names))


def _slot_counts(rates: np.ndarray) -> np.ndarray:
    """Whole slots by largest remainder; ties go to the earlier source; no source goes without."""
    # One slot is everyone's, the rest follow the rates: a rate of at least 1/PERIOD keeps its rounded share.
    # Summed exactly: no other way to add, of another version or machine, must give another slot.
    exact = rates / math.fsum(rates) * PERIOD
    slots = np.maximum(np.floor(exact).astype(np.int64), 1)
    remainder = exact - slots
    while slots.sum() < PERIOD:
        winner = int(np.argmax(remainder))
        slots[winner] += 1
        remainder[winner] -= 1
    while slots.sum() > PERIOD:
        # Only where the single slots of rare sources overfilled the period: the most overpaid gives one back.
        loser = int(np.argmin(np.where(slots > 1, remainder, np.inf)))
        slots[loser] -= 1
        remainder[loser] += 1
    return slots


@functools.lru_cache(maxsize=512)
def _interleave(slots: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Orders one period so that every prefix holds each source's share to within one row.

    Tijdeman's chairman assignment: among the sources that would otherwise fall behind, the one whose next row is due
    first. In whole numbers, so every machine agrees. Remembered: it takes milliseconds, and schedules and resumes ask
    for the same periods again.

    Returns:
      (source of each place [PERIOD], earlier places of the same source [PERIOD]), both int64.
    """
    count = len(slots)
    sources = np.zeros(PERIOD, np.int64)
    earlier = np.zeros(PERIOD, np.int64)
    if count == 1:
        earlier[:] = np.arange(PERIOD)
    # Row j of a source may stand from `release` on and must stand by `due`, where the prefix would leave its bounds.
    scale = 2 * count - 2
    ready: list[tuple[int, int, int]] = []
    waiting = [(0, source, 0) for source in range(count)]
    for place in range(PERIOD if count > 1 else 0):
        while waiting and waiting[0][0] <= place:
            _, source, row = heapq.heappop(waiting)
            due = (scale * (row + 1) - 1) * PERIOD // (scale * slots[source])
            heapq.heappush(ready, (due, source, row))
        _, source, row = heapq.heappop(ready)
        sources[place], earlier[place] = source, row
        release = -(-(scale * (row + 1) + 1) * PERIOD // (scale * slots[source])) - 1
        heapq.heappush(waiting, (release, source, row + 1))
    for shared in (sources, earlier):
        shared.flags.writeable = False
    return sources, earlier
