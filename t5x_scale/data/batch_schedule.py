"""Batch size as a function of the step, and the row at which each step begins."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from t5x_scale.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class BatchSchedule:
    """Rows per step, constant between named steps.

    PaLM 540B: `BatchSchedule(((0, 512), (50_000, 1024), (115_000, 2048)))`.

    Attributes:
      steps: pairs (first step, rows), steps increasing from 0; or one number for a constant size.
      anchor_step: the step at which the count of rows starts from `anchor_row` (see `anchored`).
      anchor_row: the row at which `anchor_step` begins.
    """

    steps: Sequence[tuple[int, int]] | int
    anchor_step: int = 0
    anchor_row: int = 0

    def __post_init__(self):
        steps = ((0, self.steps),) if isinstance(self.steps, int) else self.steps
        try:
            pairs = tuple((_whole(first), _whole(rows)) for first, rows in steps)
        except (TypeError, ValueError) as error:
            raise UserError(f"a batch size is a number or pairs (first step, rows), not {self.steps!r}") from error
        if not pairs or pairs[0][0] != 0:
            raise UserError(f"the batch size schedule {self.steps!r} must begin at step 0")
        if any(later <= earlier for (earlier, _), (later, _) in itertools.pairwise(pairs)):
            raise UserError(f"the steps of the batch size schedule {self.steps!r} must increase")
        if any(rows < 1 for _, rows in pairs):
            raise UserError(f"a batch has at least one row; the batch size schedule is {self.steps!r}")
        # Normalised, so that 8 and ((0, 8),) are equal and hash alike.
        object.__setattr__(self, "steps", pairs)

    def size(self, step: int) -> int:
        """Rows of the batch of `step`."""
        return self.steps[self._piece(step)][1]

    def sizes(self) -> tuple[int, ...]:
        """Every batch size the schedule takes, in order."""
        return tuple(rows for _, rows in self.steps)

    def first_row(self, step: int) -> int:
        """Global row at which `step` begins: the running sum of the batch sizes before it."""
        return self._sum(step) - self._sum(self.anchor_step) + self.anchor_row

    def rows(self, steps: int) -> int:
        """Rows that the first `steps` steps end at."""
        return self.first_row(steps)

    def anchored(self, step: int, row: int) -> BatchSchedule:
        """The same sizes, with `step` beginning at `row`: how a run takes on another schedule midway."""
        return dataclasses.replace(self, anchor_step=step, anchor_row=row)

    def _piece(self, step: int) -> int:
        if step < 0:
            raise ValueError(f"step {step} is negative")
        return max(index for index, (first, _) in enumerate(self.steps) if first <= step)

    def _sum(self, step: int) -> int:
        total = 0
        for index in range(self._piece(step) + 1):
            first, rows = self.steps[index]
            end = self.steps[index + 1][0] if index + 1 < len(self.steps) else step
            total += (min(end, step) - first) * rows
        return total


def make_batch_schedule(batch_size: int | Sequence[tuple[int, int]] | BatchSchedule) -> BatchSchedule:
    """A `BatchSchedule` from whatever a configuration may give as a batch size."""
    return batch_size if isinstance(batch_size, BatchSchedule) else BatchSchedule(batch_size)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{value!r} is not a whole number")
    return int(value)
