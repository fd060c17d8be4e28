"""The wish to stop: SIGTERM or SIGINT, agreed among all processes of a run."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

# sysexits' EX_TEMPFAIL: stopped, saved, and the same command resumes.
EXIT_RESUMABLE = 75


class StopSignal:
    """Within its context, SIGTERM and SIGINT ask the run to stop after the step at hand, saved and resumable.

    A second SIGINT stops at once. With several processes JAX's coordination service watches for SIGTERM and makes
    all of them stop at the same step.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT] if _is_multiprocess() else [signal.SIGINT, signal.SIGTERM]
            self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested.set()
        if number == signal.SIGINT and _is_multiprocess():
            # Only SIGTERM is agreed upon.
            os.kill(os.getpid(), signal.SIGTERM)

    def is_requested(self, step: int) -> bool:
        """Whether to stop before `step`; every process gets the same answer for the same step."""
        if _is_multiprocess():
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested.is_set()


def _is_multiprocess() -> bool:
    import jax  # Not at the top: the rest of core is usable without starting a backend.

    return jax.process_count() > 1
