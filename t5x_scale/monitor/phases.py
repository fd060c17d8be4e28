"""What a process of a run is doing, and the log of it: `MODEL_DIR/health/phases_<process>.jsonl`.

One JSON object a line. `{"time": 1764150000.5, "at": 12.25, "phase": "checkpoint", "step": 300, "pid": 4711}` says that
from then on this process did that; `time` is Unix seconds, `at` seconds since the process began, by a clock that never
jumps. Two more kinds of line stand between them: `"phase": "async_save"` with `"edge": "begin"` or `"end"`, since a
checkpoint is written while steps go on, and `"phase": "end"` with the `"reason"`, the last line of a process that came
to its end by itself. What follows `startup` is another life of the run.

Steps and ordinary waits for data alternate thousands of times an hour: a line `step` stands where steps begin again
after something else, and `data_wait` where a wait has become long.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from t5x_scale.core import files

LOGGER = logging.getLogger(__name__)

STARTUP, RESTORE, COMPILE, STEP, DATA_WAIT = "startup", "restore", "compile", "step", "data_wait"
CHECKPOINT, EVALUATION, REWIND, PROBE = "checkpoint", "evaluation", "rewind", "probe"
PHASES = (STARTUP, RESTORE, COMPILE, STEP, DATA_WAIT, CHECKPOINT, EVALUATION, REWIND, PROBE)
ASYNC_SAVE, END = "async_save", "end"
BEGIN_EDGE, END_EDGE = "begin", "end"

HEALTH_DIRECTORY = "health"


class Place(NamedTuple):
    """Where a process is: its phase, the steps done, and since when, by the monotonic clock."""

    phase: str
    step: int
    since: float


class Listener(Protocol):
    """Who is told what the loop is at; called thousands of times an hour, so it must return at once."""

    def enter(self, phase: str, step: int | None = None) -> str:
        """From now on the process is in `phase`, at `step` steps done (None: as before). Returns the phase before."""
        ...

    def measured(self, steps: int, seconds: float) -> None:
        """The results of `steps` more steps have arrived, after `seconds` of stepping and waiting for data."""
        ...


def health_directory(model_dir: str | os.PathLike) -> files.Path:
    """Where the processes of the run in `model_dir` leave their signs of life."""
    return files.to_path(model_dir) / HEALTH_DIRECTORY


def phase_log_path(model_dir: str | os.PathLike, process: int) -> files.Path:
    """The phase log of one process."""
    return health_directory(model_dir) / f"phases_{process}.jsonl"


def read_phases(model_dir: str | os.PathLike, process: int = 0) -> list[dict[str, Any]]:
    """The lines of a phase log, oldest first; what is not such a line, or only half of one, is left out."""
    lines = []
    for text in files.read_appended(phase_log_path(model_dir, process), "replace"):
        try:
            line = json.loads(text)
            if isinstance(line["phase"], str) and isinstance(line["time"], (int, float)):
                lines.append(line)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return lines


class PhaseLog:
    """Appends to the phase log of this process. A line on a local disk can be read at once, and survives a kill."""

    def __init__(self, model_dir: str | os.PathLike, process: int, age: float):
        """Opens or continues the log.

        Args:
          model_dir: of the run; exists.
          process: whose log it is.
          age: seconds since this process began.

        Raises:
          UserError: the directory cannot be written to.
        """
        path = phase_log_path(model_dir, process)
        files.make_directory(path.parent)
        self._log = files.AppendLog(path)
        self._is_remote = files.is_remote(path)
        self._born = time.monotonic() - age
        self._lock = threading.Lock()
        self._failed = False

    def write(self, phase: str, step: int, ago: float = 0.0, **details: Any) -> None:
        """Adds a line about what began `ago` seconds ago.

        One that cannot be written (disk full) is lost, said once, and ends nothing.
        """
        at = round(time.monotonic() - self._born - ago, 3)
        line = json.dumps({"time": time.time() - ago, "at": at, "phase": phase, "step": step, **details})
        with self._lock, self._forgiving():
            self._log.write(line)
            if not self._is_remote:
                self._log.flush()

    def flush(self) -> None:
        """Makes every line visible to readers; a request to an object store."""
        with self._lock, self._forgiving():
            self._log.flush()

    def close(self) -> None:
        """Flushes and closes."""
        with self._lock, self._forgiving():
            self._log.close()

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        # Whatever an object store's client throws: a sign of life must not end a run.
        try:
            yield
        except Exception as error:
            if not self._failed:
                LOGGER.warning("the phase log cannot be written (%s); the run goes on", error)
            self._failed = True
