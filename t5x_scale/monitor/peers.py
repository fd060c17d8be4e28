"""What the processes of a run tell one another of their own times, and who is named for them."""

from __future__ import annotations

import collections
import logging
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

from t5x_scale.monitor.speed_probe import Speeds
from t5x_scale.monitor.status import StatusLine
from t5x_scale.monitor.stragglers import (
    DATA,
    DEVICE_PROBE,
    DISPATCH,
    HOST_PROBE,
    HostTimes,
    Naming,
    Straggler,
    StragglerConfig,
)
from t5x_scale.monitor.writers import MetricWriters

LOGGER = logging.getLogger(__name__)

_KEYS = "t5x_scale/times/"
_LEAST_STEPS = 3
# Probes that one number is made of, the middle one: a moment of bad luck is not a slow host.
_PROBES = 3


class Board(Protocol):
    """Where processes leave a line each for the others; JAX's coordination service has one."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


def find_board() -> Board | None:
    """The coordination service's board; None for a process on its own."""
    from jax._src import distributed

    return distributed.global_state.client


class OwnTimes:
    """The own times of this process, averaged over a window that ends now."""

    def __init__(self, config: StragglerConfig, process: int):
        self._process, self._window = process, config.window_seconds
        self._counts: Callable[[], tuple[int, float, float]] | None = None
        self._looks: collections.deque[tuple[float, int, float, float]] = collections.deque()
        self._speeds: collections.deque[Speeds] = collections.deque(maxlen=_PROBES)

    def follow(self, counts: Callable[[], tuple[int, float, float]]) -> None:
        """`counts` gives what `Throughput.own_times` does."""
        self._counts = counts

    def probed(self, speeds: Speeds) -> None:
        """The fixed work has been timed."""
        self._speeds.append(speeds)

    def now(self) -> HostTimes:
        """The averages; without what is not known yet."""
        step_seconds, seconds = self._of_steps()
        slowest = None
        if len(self._speeds) == _PROBES:
            speeds = list(self._speeds)
            seconds[HOST_PROBE] = statistics.median(probe.host for probe in speeds)
            devices = {id: statistics.median(probe.devices[id] for probe in speeds) for id in speeds[-1].devices}
            if devices:
                slowest = max(devices, key=devices.__getitem__)
                seconds[DEVICE_PROBE] = devices[slowest]
        return HostTimes(self._process, socket.gethostname(), step_seconds, seconds, slowest)

    def _of_steps(self) -> tuple[float, dict[str, float]]:
        if self._counts is None:
            return 0.0, {}
        now = time.monotonic()
        self._looks.append((now, *self._counts()))
        while len(self._looks) > 2 and now - self._looks[1][0] >= self._window:
            self._looks.popleft()
        (began, first, waited_before, worked_before), (_, last, waited, worked) = self._looks[0], self._looks[-1]
        steps = last - first
        if steps < _LEAST_STEPS:
            return 0.0, {}
        return (now - began) / steps, {
            DATA: (waited - waited_before) / steps,
            DISPATCH: (worked - worked_before) / steps,
        }


class Peers:
    """Puts this process's own times where the others can see them; in the first process, looks at everyone's."""

    def __init__(self, config: StragglerConfig, process: int, find_board: Callable[[], Board | None] = find_board):
        """Args:
        config: when a host is called slow.
        process: which this is.
        find_board: finds what the processes have in common.
        """
        self.own = OwnTimes(config, process)
        self._process, self._find_board = process, find_board
        self._naming = Naming(config)
        self._writers: MetricWriters | None = None
        self._line: StatusLine | None = None

    def connect(self, writers: MetricWriters, line: StatusLine) -> None:
        """Where the first process tells of slow hosts."""
        self._writers, self._line = writers, line

    def exchange(self, step: int) -> HostTimes:
        """One round; takes requests to the coordination service, so it belongs in a thread of its own.

        Returns:
          This process's own times.
        """
        times = self.own.now()
        board = self._find_board()
        if board is not None:
            board.key_value_set(f"{_KEYS}{self._process}", times.to_json(), allow_overwrite=True)
        if board is not None and self._process == 0:
            self._look([HostTimes.from_json(text) for _, text in board.key_value_dir_get(_KEYS)], step)
        return times

    def _look(self, times: list[HostTimes], step: int) -> None:
        new, over = self._naming.look(times)
        for straggler in new:
            LOGGER.warning("step %d: %s", step, straggler.render())
            self._event(step, straggler)
        for straggler in over:
            LOGGER.warning("step %d: no longer: %s", step, straggler.render())
            self._event(step, straggler, over=True)
        if self._line is not None:
            self._line.remark(self._naming.render())

    def _event(self, step: int, straggler: Straggler, **details: Any) -> None:
        if self._writers is not None:
            self._writers.event("straggler", step, **straggler.to_event(), **details)
