"""Ends a process in which nothing moves any more, and says where every thread stood.

A collective that misses a host and a read from a dead disk wait for ever, inside C++, where no exception reaches. A
thread looks at where the loop is; when that has not changed for too long it dumps all Python stacks and ends the
process, so that a scheduler starts it again. What was being written then is not committed, and no restore sees it.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable

from t5x_scale.core import distributed, files
from t5x_scale.core.checks import check_seconds
from t5x_scale.core.preemption import EXIT_RESUMABLE
from t5x_scale.monitor.phases import CHECKPOINT, DATA_WAIT, RESTORE, REWIND, STEP, Place

LOGGER = logging.getLogger(__name__)

_STANDARD_ERROR = 2
# For stacks, words and the record of it, which may have to go where nothing moves either.
_LAST_SECONDS, _LAST_SECONDS_REMOTE = 10.0, 30.0
_LOOKS, _LONGEST_LOOK = 20, 5.0
# Devices run behind the host: for results it waits as long as an interval of steps takes.
_INTERVALS = 3.0


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """How long nothing may move, in seconds; None is for ever.

    Time in which this process was itself stopped does not count, nor does any jump of the clock.

    Attributes:
      timeout_seconds: while stepping or waiting for data. Three times the longest interval between two looks at the
        results (`log_every_steps` steps) is always waited for.
      startup_seconds: before the first results: opening, compiling, the first batch; and for any later compilation
        and each evaluation.
      saving_seconds: while saving, restoring or rewinding.
    """

    timeout_seconds: float | None = 600.0
    startup_seconds: float | None = 3600.0
    saving_seconds: float | None = 3600.0

    def __post_init__(self) -> None:
        check_seconds(self, *(field.name for field in dataclasses.fields(self)), may_be_none=True)

    def limit(self, phase: str, interval: float | None) -> float:
        """Seconds that nothing may move in `phase`; `interval` is the longest measured, or None before the first."""
        if phase in (CHECKPOINT, RESTORE, REWIND):
            seconds = self.saving_seconds
        elif phase in (STEP, DATA_WAIT) and interval is not None:
            seconds = None if self.timeout_seconds is None else max(self.timeout_seconds, _INTERVALS * interval)
        else:
            seconds = self.startup_seconds
        return math.inf if seconds is None else seconds


class Watchdog:
    """Looks at a process from a thread of its own, within its context."""

    def __init__(
        self,
        config: WatchdogConfig,
        look: Callable[[], Place],
        stacks: files.Path,
        command: str = "",
        tell: Callable[[Place, float], None] = lambda place, seconds: None,
        end: Callable[[int], None] = os._exit,
    ):
        """Args:
        config: its limits.
        look: where the process is; another object each time anything has moved.
        stacks: the file for the stacks.
        command: what continues the run.
        tell: called with the place and the seconds, to put them on record; may hang or fail.
        end: ends the process with an exit code.
        """
        self.config = config
        self._look, self._stacks, self._command, self._tell, self._end = look, stacks, command, tell, end
        self._interval: float | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def measured(self, seconds: float) -> None:
        """The results of an interval of steps have arrived after `seconds`."""
        longest, timeout = self._interval or 0.0, self.config.timeout_seconds
        self._interval = max(longest, seconds)
        if timeout is not None and _INTERVALS * seconds > max(timeout, _INTERVALS * longest):
            LOGGER.warning(
                "results arrive every %.0f s, so the watchdog waits %.0f s for them, not the %.0f s of "
                "WatchdogConfig.timeout_seconds; a smaller log_every_steps makes it quicker",
                *(seconds, _INTERVALS * seconds, timeout),
            )

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        seen, still, before = self._look(), 0.0, time.monotonic()
        while True:
            limit = self.config.limit(seen.phase, self._interval)
            pause = min(limit / _LOOKS, _LONGEST_LOOK)
            self._guard(limit)
            if self._closing.wait(pause):
                return
            now, place = time.monotonic(), self._look()
            # A process that was stopped for an hour was not hanging for an hour.
            still = 0.0 if place is not seen else still + min(now - before, 2 * pause)
            seen, before = place, now
            if still >= self.config.limit(seen.phase, self._interval):
                self._fire(seen, still)
                return

    def _guard(self, limit: float) -> None:
        """Where no thread of Python can run any more, since one does not give way, a timer in C does the most of it.

        It cannot choose the exit code, which is 1.
        """
        if math.isfinite(limit):
            faulthandler.dump_traceback_later(2 * limit + 2 * _LAST_SECONDS_REMOTE, exit=True, file=_STANDARD_ERROR)
        else:
            faulthandler.cancel_dump_traceback_later()

    def _fire(self, place: Place, seconds: float) -> None:
        # Anything in here may hang as the rest does, whatever it writes to: the end does not wait for it.
        last = threading.Thread(target=self._leave, args=(place, seconds), daemon=True)
        last.start()
        last.join(_LAST_SECONDS_REMOTE if files.is_remote(self._stacks) else _LAST_SECONDS)
        self._end(EXIT_RESUMABLE)

    def _leave(self, place: Place, seconds: float) -> None:
        line = (
            f"nothing has moved for {seconds:.0f} s at step {place.step}, in phase {place.phase}; every thread's stack "
            f"is above and in {self._stacks}. The same command resumes from the newest checkpoint"
        )
        line += f": {self._command}" if self._command else ""
        faulthandler.dump_traceback(_STANDARD_ERROR)
        os.write(_STANDARD_ERROR, f"t5x_scale: error: {line}\n".encode())
        for action in (lambda: self._keep_stacks(line), lambda: self._tell(place, seconds)):
            try:
                action()
            except Exception as error:
                LOGGER.warning("the end of this process is not all on record: %s", error)
        if self._end is os._exit:
            distributed.leave_run(EXIT_RESUMABLE, waiting=False)

    def _keep_stacks(self, line: str) -> None:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            files.write_text(self._stacks, f"{line}\n\n{file.read()}")
