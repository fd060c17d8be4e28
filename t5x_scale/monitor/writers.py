"""Writes the metrics of a run: TensorBoard events and the exact record, from a thread of its own."""

from __future__ import annotations

import atexit
import logging
import numbers
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.monitor import metric_log
from t5x_scale.monitor.event_file import EventFile

_LOGGER = logging.getLogger(__name__)
# An upload rewrites the current part: once a minute is fresh enough for a reader and cheap enough for weeks.
REMOTE_FLUSH_SECONDS = 60.0


class MetricWriters:
    """The metrics of a run, in `MODEL_DIR/metrics/`: `metrics.jsonl` (see `metric_log`) and TensorBoard events.

    `write` and `event` put a line into a queue and return; a thread writes. Lines on a local disk are with the
    operating system a moment later and survive a `kill -9`; on an object store they are uploaded about once a minute.
    `flush` waits until everything is visible: call it before a checkpoint is saved, so that no step that a resume will
    not repeat lacks its line. A write that fails (disk full, network) is logged once and tried again at the next one,
    and the run goes on; what could not be written at the end is an error of `close`.
    """

    def __init__(self, model_dir: str | os.PathLike, *, enabled: bool = True):
        """Opens or continues the record.

        Args:
          model_dir: the directory of the run.
          enabled: False makes every method do nothing; one process of a run writes, the first.

        Raises:
          UserError: the directory cannot be written to.
        """
        self._enabled = enabled
        self._error: Exception | None = None  # Of the last flush, if it failed.
        self._lost = 0
        if not enabled:
            return
        path = metric_log.log_path(model_dir)
        files.make_directory(path.parent)
        self._interval = REMOTE_FLUSH_SECONDS if files.is_remote(path) else 0.0
        self._log = files.AppendLog(path)
        self._events = EventFile(path.parent)
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="metric-writers", daemon=True)
        self._thread.start()
        # A run that ends by an exception nobody expected still leaves its last lines.
        atexit.register(self._stop)

    def write(self, step: int, metrics: Mapping[str, numbers.Real], *, at: float | None = None) -> None:
        """Records the numbers of a step.

        Args:
          step: completed steps; the first step of a run is 1.
          metrics: `group/name` -> Python or numpy scalar. A device array is refused: reading it would wait.
          at: Unix time; now by default.

        Raises:
          ValueError: a name is not `group/name`.  TypeError: a value is not a plain number.
        """
        metric_log.check_names(metrics)
        for name, value in metrics.items():
            if not isinstance(value, numbers.Real):
                raise TypeError(f"{name} is a {type(value).__name__}; metrics are plain numbers, fetched by the caller")
        if not self._enabled or not metrics:
            return
        copy, moment = dict(metrics), time.time() if at is None else at

        def put() -> None:
            self._log.write(metric_log.format_metrics(step, moment, copy))
            self._events.write(step, moment, copy)

        self._queue.put(put)

    def event(self, name: str, step: int, *, at: float | None = None, **details: Any) -> None:
        """Records that something happened when `step` steps were done.

        `start` belongs at the beginning of every process of a run, with the step it begins or resumes at; `rewind`
        where a run goes back to `step`. Both void the later steps written before. Other names are free.
        """
        if not self._enabled:
            return
        moment = time.time() if at is None else at
        line = metric_log.format_event(step, moment, name, details)

        def put() -> None:
            self._log.write(line)
            if name in (metric_log.START, metric_log.REWIND):
                self._events.restart(step + 1, moment)

        self._queue.put(put)

    def flush(self, timeout: float | None = 60.0) -> bool:
        """Waits until everything recorded so far is visible to readers; False if it is not after `timeout` seconds."""
        if not self._enabled or not self._thread.is_alive():
            return self._error is None
        done = threading.Event()

        def put() -> None:
            self._flush()
            done.set()

        self._queue.put(put)
        return done.wait(timeout) and self._error is None

    def close(self) -> None:
        """Writes what is left and ends the thread. Closing twice is harmless.

        Raises:
          UserError: lines are lost because the last writes failed.
        """
        if not self._enabled:
            return
        self._stop()
        if self._error is not None:
            raise UserError(f"the last metrics could not be written: {self._error}") from self._error
        if self._lost:
            raise UserError(f"{self._lost} lines of metrics could not be written; see the warnings above")

    def __enter__(self) -> MetricWriters:
        return self

    def __exit__(self, kind: object, *unused: object) -> None:
        if kind is None:
            self.close()
        elif self._enabled:
            self._stop()  # The error on its way is the one to report.

    def _stop(self) -> None:
        atexit.unregister(self._stop)
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        flushed = time.monotonic()
        waiting = False
        while True:
            try:
                item = self._queue.get(timeout=max(flushed + self._interval - time.monotonic(), 0) if waiting else None)
            except queue.Empty:
                self._flush()
                flushed, waiting = time.monotonic(), False
                continue
            if item is None:
                break
            self._lost += not self._attempt(item)
            waiting = True
        self._flush()
        self._attempt(self._log.close)

    def _flush(self) -> None:
        written = [self._attempt(self._log.flush), self._attempt(self._events.flush)]
        if all(written):
            self._error = None

    def _attempt(self, action: Callable[[], None]) -> bool:
        # Whatever an object store's client throws: a metric must not end a run.
        try:
            action()
        except Exception as error:
            if self._error is None:
                _LOGGER.warning("metrics cannot be written now (%s); trying again with the next ones", error)
            self._error = error
            return False
        return True
