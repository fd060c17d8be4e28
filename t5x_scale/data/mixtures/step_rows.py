"""The row at which every step of a run begins, for a run whose batch size was changed on the way."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

from t5x_scale.data.batch_schedule import BatchSchedule


@dataclasses.dataclass(frozen=True)
class StepRows:
    """What was, up to the last of `past`, and a batch schedule from there on.

    A batch schedule that took the place of another knows nothing of the steps before it, and what was planned by
    steps (a mixture's rates) must stay at the rows where it was.

    Attributes:
      schedule: of the batch size; anchored at the last pair of `past` (`BatchSchedule.anchored`).
      past: pairs (step, row at which it begins), both increasing from (0, 0); the batch size is constant between
        neighbours. What `until` returned.
    """

    schedule: BatchSchedule
    past: Sequence[Sequence[int]] = ((0, 0),)

    def __post_init__(self):
        past = tuple((int(step), int(row)) for step, row in self.past) or ((0, 0),)
        if past[0] != (0, 0) or any(b[0] <= a[0] or b[1] <= a[1] for a, b in itertools.pairwise(past)):
            raise ValueError(f"pairs (step, row) must increase from (0, 0), not {past}")
        step, row = past[-1]
        if self.schedule.first_row(step) != row:
            raise ValueError(f"the batch schedule begins step {step} at row {self.schedule.first_row(step)}, not {row}")
        object.__setattr__(self, "past", past)

    def first_row(self, step: int) -> int:
        """The row at which `step` begins, rows that were skipped not counted."""
        if step >= self.past[-1][0]:
            return self.schedule.first_row(step)
        index = bisect.bisect_right(self.past, step, key=lambda pair: pair[0])
        (step_0, row_0), (step_1, row_1) = self.past[index - 1 : index + 1]
        return row_0 + (row_1 - row_0) * (step - step_0) // (step_1 - step_0)

    def until(self, step: int) -> tuple[tuple[int, int], ...]:
        """`past` of a run that goes on from `step`: what a checkpoint keeps, a pair for every batch size there was."""
        last = self.past[-1][0]
        known = [first for first, _ in self.past]
        turns = [first for first, _ in self.schedule.steps if first > last]
        steps = [0, *(turn for turn in (*known, *turns) if 0 < turn < step), *([step] if step else [])]
        return _without_straight([(turn, self.first_row(turn)) for turn in steps])


def _without_straight(pairs: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Leaves out every pair at which the batch size does not change, but the first and the last."""
    kept = pairs[:1]
    for index, (step, row) in enumerate(pairs[1:-1], 1):
        (before, row_before), (after, row_after) = kept[-1], pairs[index + 1]
        if (row - row_before) * (after - step) != (row_after - row) * (step - before):
            kept.append((step, row))
    return (*kept, *pairs[1:][-1:])
