"""The signs of life of one process of a run: what it is at, told to a log, a heartbeat and whoever watches."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.checks import check_kind, check_seconds
from t5x_scale.monitor import phases
from t5x_scale.monitor.corruption import ProbeConfig
from t5x_scale.monitor.peers import Peers
from t5x_scale.monitor.phases import DATA_WAIT, PHASES, STARTUP, PhaseLog, Place
from t5x_scale.monitor.said import Said
from t5x_scale.monitor.status import StatusLine
from t5x_scale.monitor.stragglers import HostTimes, StragglerConfig
from t5x_scale.monitor.throughput import Throughput
from t5x_scale.monitor.watchdog import Watchdog, WatchdogConfig
from t5x_scale.monitor.writers import MetricWriters

LOGGER = logging.getLogger(__name__)

# Each beat is a request to an object store.
REMOTE_BEAT_SECONDS = 60.0
# A wait for data of this length is no longer part of stepping.
LONG_WAIT_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class HealthConfig:
    """What the processes of a run tell of themselves.

    Attributes:
      beat_seconds: between two heartbeats of a process; in an object store at least a minute lies between them.
      watchdog: when a process in which nothing moves is ended; None is never.
      stragglers: when a host is called slow.
      probe: whether devices are asked now and then if they still count right.
    """

    beat_seconds: float = 5.0
    watchdog: WatchdogConfig | None = WatchdogConfig()
    stragglers: StragglerConfig = StragglerConfig()
    probe: ProbeConfig = ProbeConfig()

    def __post_init__(self) -> None:
        check_seconds(self, "beat_seconds")
        check_kind(self, WatchdogConfig, "watchdog", may_be_none=True)
        check_kind(self, StragglerConfig, "stragglers")
        check_kind(self, ProbeConfig, "probe")


class Health:
    """Follows what this process does; a `phases.Listener`, and a context manager for the time it is to be seen.

    Every change of phase takes microseconds on the thread that makes it. A thread of its own writes the heartbeat
    `MODEL_DIR/health/host_<process>.json`, whole or not at all. What cannot be written is said once and ends nothing.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike,
        config: HealthConfig = HealthConfig(),
        process: int = 0,
        processes: int = 1,
        command: str = "",
    ):
        """Writes nothing yet.

        Args:
          model_dir: of the run; exists by the time that the context is entered.
          config: see `HealthConfig`.
          process, processes: which process of how many this is.
          command: what continues the run.
        """
        self.config = config
        self._model_dir, self._process, self._processes = files.to_path(model_dir), process, processes
        self._path = phases.health_directory(model_dir) / f"host_{process}.json"
        self._age = process_age()
        self._place = Place(STARTUP, 0, time.monotonic() - self._age)
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._logged = STARTUP
        self._reason: str | None = None
        self._log: PhaseLog | None = None
        self._writers: MetricWriters | None = None
        self.peers = Peers(config.stragglers, process)
        self._said = Said(lambda: self._place.step)
        self._watchdog: Watchdog | None = None
        if config.watchdog is not None:
            stacks = phases.health_directory(model_dir) / f"stacks_{process}.txt"
            self._watchdog = Watchdog(config.watchdog, lambda: self._place, stacks, command, self._tell_of_hanging)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._failed = False
        self._times: HostTimes | None = None

    @property
    def place(self) -> Place:
        """Where this process is now. Another object than before if anything has moved."""
        return self._place

    def seconds(self) -> dict[str, float]:
        """Seconds since the process began, by phase."""
        phase, _, since = self._place
        return {**self._seconds, phase: self._seconds[phase] + time.monotonic() - since}

    def enter(self, phase: str, step: int | None = None) -> str:
        """From now on this process is in `phase`, at `step` steps done (None: as before). Returns the phase before."""
        now, (before, before_step, since) = time.monotonic(), self._place
        self._place = Place(phase, before_step if step is None else step, now)
        self._seconds[before] += now - since
        if phase not in (self._logged, DATA_WAIT):
            self._write_phase(phase, self._place.step)
        return before

    @contextlib.contextmanager
    def during(self, phase: str, step: int | None = None) -> Iterator[None]:
        """The time inside is of `phase`; afterwards it is as it was before."""
        before = self.enter(phase, step)
        try:
            yield
        finally:
            self.enter(before)

    def measured(self, steps: int, seconds: float) -> None:
        """The results of `steps` more steps have arrived, after `seconds` of stepping and waiting for data."""
        if self._watchdog is not None:
            self._watchdog.measured(seconds)

    def connect(self, writers: MetricWriters, line: StatusLine, throughput: Throughput) -> None:
        """From now on what there is to be told goes into the record of the run and its status line, too.

        Args:
          writers, line: of this process; those of every process but the first do nothing.
          throughput: knows this process's own times.
        """
        self._writers = writers
        self._said.connect(writers)
        self.peers.connect(writers, line)
        self.peers.own.follow(throughput.own_times)

    def async_save(self, step: int, edge: str) -> None:
        """A checkpoint of `step` begins to be written beside the steps (`edge` "begin"), or has ended ("end")."""
        self._write(phases.ASYNC_SAVE, step, edge=edge)

    def ending(self, reason: str) -> None:
        """Why this process will end by itself, for the last line of its log; "done" otherwise, or the error's name."""
        self._reason = reason

    def __enter__(self) -> Health:
        self._log = PhaseLog(self._model_dir, self._process, process_age())
        self._write(STARTUP, 0, pid=os.getpid(), host=socket.gethostname(), processes=self._processes)
        self._said.__enter__()
        self._thread.start()
        if self._watchdog is not None:
            self._watchdog.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self._said.__exit__()
        if self._watchdog is not None:
            self._watchdog.__exit__()
        self._closing.set()
        self._thread.join()
        reason = self._reason or "done"
        if error is not None:
            reason = f"{kind.__name__}: {error}"[:500]
        self._write(phases.END, self._place.step, reason=reason)
        self._place = self._place._replace(phase=phases.END)
        self._beat()
        self._log.close()

    def _write_phase(self, phase: str, step: int) -> None:
        self._logged = phase
        self._write(phase, step)

    def _write(self, phase: str, step: int, **details: Any) -> None:
        if self._log is not None:
            self._log.write(phase, step, **details)

    def _tell_of_hanging(self, place: Place, seconds: float) -> None:
        reason = f"watchdog: nothing had moved for {seconds:.0f} s in {place.phase}"
        self._write(phases.END, place.step, reason=reason, during=place.phase)
        if self._writers is not None:
            about = {"phase": place.phase, "seconds": round(seconds, 1), "process": self._process}
            self._writers.event("watchdog", place.step, **about)
            self._writers.flush(timeout=5.0)

    def _run(self) -> None:
        interval = self.config.beat_seconds
        if files.is_remote(self._path):
            interval = max(interval, REMOTE_BEAT_SECONDS)
        self._beat()
        next_beat = time.monotonic() + interval
        while not self._closing.wait(min(LONG_WAIT_SECONDS / 2, interval)):
            self._log_long_wait()
            if time.monotonic() >= next_beat:
                self._beat()
                next_beat = time.monotonic() + interval

    def _log_long_wait(self) -> None:
        phase, step, since = self._place
        waited = time.monotonic() - since
        if phase == DATA_WAIT != self._logged and waited > LONG_WAIT_SECONDS:
            self._logged = DATA_WAIT
            self._write(DATA_WAIT, step, ago=waited)

    def _beat(self) -> None:
        # Whatever an object store's client or the coordination service throws.
        for action in (self._exchange, lambda: files.write_json(self._path, self._sign()), self._log.flush):
            try:
                action()
            except Exception as error:
                if not self._failed:
                    LOGGER.warning("the heartbeat %s cannot be given (%s); the run goes on", self._path, error)
                self._failed = True

    def _exchange(self) -> None:
        if self._place.phase != phases.END:
            self._times = self.peers.exchange(self._place.step)

    def _sign(self) -> dict[str, Any]:
        phase, step, since = self._place
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": self._process,
            "processes": self._processes,
            "time": time.time(),
            "step": step,
            "phase": phase,
            "seconds_in_phase": round(time.monotonic() - since, 3),
            "seconds_per_step": self._times.step_seconds if self._times else None,
            "own_seconds": dict(self._times.seconds) if self._times else {},
            "memory_bytes": resident_bytes(),
        }


def process_age() -> float:
    """Seconds since this process began; 0 where the system does not tell."""
    try:
        with open("/proc/self/stat") as file:
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def resident_bytes() -> int | None:
    """Bytes of memory that this process holds; None where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
