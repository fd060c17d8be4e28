"""The wish to stop: SIGTERM, SIGINT or the platform's notice, agreed among all processes of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from types import FrameType
from typing import Any

from t5x_scale.core.checks import check_address, check_kind, check_seconds
from t5x_scale.core.maintenance import MaintenanceWatch

# sysexits' EX_TEMPFAIL: stopped, saved, and the same command resumes.
EXIT_RESUMABLE = 75


@dataclasses.dataclass(frozen=True)
class PreemptionConfig:
    """What else than a signal stops a run.

    Attributes:
      watch_maintenance: whether the platform's metadata server is asked if this machine will be taken away; where
        there is none, nothing happens.
      poll_seconds: between two questions.
      address: host:port of the metadata server, if not the platform's own.
    """

    watch_maintenance: bool = True
    poll_seconds: float = 5.0
    address: str | None = None

    def __post_init__(self) -> None:
        check_kind(self, bool, "watch_maintenance")
        check_seconds(self, "poll_seconds")
        check_address(self, "address")


class StopSignal:
    """Within its context, SIGTERM, SIGINT and a notice of the platform ask the run to stop, saved and resumable.

    It stops after the step at hand. A second SIGINT stops at once. With several processes JAX's coordination service
    watches for SIGTERM and makes all of them stop at the same step; a process that is told otherwise sends itself one.

    Attributes:
      reason: what the platform announced, "" without a notice to this process.
    """

    def __init__(self, config: PreemptionConfig = PreemptionConfig(watch_maintenance=False)) -> None:
        self.reason = ""
        self._config = config
        self._requested = threading.Event()
        self._previous: dict[int, Any] = {}
        self._watch = contextlib.ExitStack()

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT] if _is_multiprocess() else [signal.SIGINT, signal.SIGTERM]
            self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        if self._config.watch_maintenance:
            config = self._config
            self._watch.enter_context(MaintenanceWatch(self._notice, config.poll_seconds, config.address))
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested.set()
        if number == signal.SIGINT and _is_multiprocess():
            # Only SIGTERM is agreed upon.
            os.kill(os.getpid(), signal.SIGTERM)

    def _notice(self, reason: str) -> None:
        """Called from another thread."""
        self.reason = reason
        if _is_multiprocess():
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._requested.set()

    def is_requested(self, step: int) -> bool:
        """Whether to stop before `step`; every process gets the same answer for the same step."""
        if _is_multiprocess():
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested.is_set()


def _is_multiprocess() -> bool:
    import jax  # Not at the top: the rest of core is usable without starting a backend.

    return jax.process_count() > 1
