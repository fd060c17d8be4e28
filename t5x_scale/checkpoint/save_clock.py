"""Saves by time: whether one is due, by the clock of process 0, in all processes alike and without a collective.

Every few steps process 0 publishes yes or no with the coordination service, and the others look it up: a message
between hosts, which no device waits for. The clock is monotonic, so that a jump of the date changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from t5x_scale.checkpoint import multihost

_TIMEOUT_SECONDS = 1200.0


class SaveClock:
    """Asked by all processes before the same steps, in the same order.

    Args:
      seconds: from the beginning of one save to the next; None makes nothing due.
      every_steps: the clock is looked at before multiples of this.
      clock: seconds from any origin; must not run backwards.
    """

    def __init__(self, seconds: float | None, every_steps: int, clock: Callable[[], float] = time.monotonic):
        self._seconds, self._every_steps, self._clock = seconds, every_steps, clock
        self._started = clock()
        self._answer: tuple[int | None, bool] = (None, False)  # Of the step that was asked for last.
        self._name = ""
        self._count = self._forgettable = self._forgotten = 0

    def is_due(self, step: int) -> bool:
        """Whether to save before `step`; asked again for the same step, the answer is the same."""
        if self._seconds is None or step % self._every_steps:
            return False
        if self._answer[0] != step:
            self._answer = (step, self._share(self._clock() - self._started >= self._seconds))
        return self._answer[1]

    def restart(self) -> None:
        """A save begins now; called by all processes."""
        self._started = self._clock()
        self._answer = (self._answer[0], False)
        # All have met in the save before this one, and so have read what was published before that.
        if multihost.is_primary():
            for number in range(self._forgotten, self._forgettable):
                multihost.forget(f"{self._name}/{number}")
        self._forgotten, self._forgettable = self._forgettable, self._count

    def _share(self, answer: bool) -> bool:
        if multihost.is_alone():
            return answer
        self._name = self._name or multihost.make_name("save_clock")
        key = f"{self._name}/{self._count}"
        self._count += 1
        if multihost.is_primary():
            multihost.publish(key, str(int(answer)))
            return answer
        return multihost.look_up(key, _TIMEOUT_SECONDS) == "1"
