"""From device buffers of metrics to the log, one interval behind the steps, so that none waits."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_scale.monitor.status import Status, StatusLine
from t5x_scale.monitor.throughput import Throughput
from t5x_scale.monitor.writers import MetricWriters


class Recorder:
    """Keeps the buffers of finished intervals and writes each when the next one is full.

    Fetching a buffer waits until its steps are done. While the newest interval is still computing, the fetch of
    the one before costs nothing, and the host never runs more than two intervals ahead of the devices.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        writers: MetricWriters,
        throughput: Throughput,
        status_line: StatusLine,
        *,
        total_steps: int,
        tokens_before: Callable[[int], int],
        at_interval: Callable[[int], Mapping[str, float]] = lambda step: {},
        at_step: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
    ):
        """Args:
        metrics: names of the buffer's columns.
        writers, throughput, status_line: where results go.
        total_steps: of the run.
        tokens_before: tokens of all steps before a step.
        at_interval: further metrics of the last step of an interval, from the number of steps done.
        at_step: sees the metrics of every step, counted from 0, in order and on every process.
        """
        self._metrics = tuple(metrics)
        self._writers, self._throughput, self._line = writers, throughput, status_line
        self._total_steps, self._tokens_before, self._at_interval = total_steps, tokens_before, at_interval
        self._at_step = at_step
        self._pending: collections.deque[tuple[int, int, Any]] = collections.deque()
        self._saved_at: float | None = None
        self.last: dict[str, float] = {}

    def push(self, first: int, end: int, buffer: Any, wait: bool = False) -> None:
        """Hands over the buffer of steps `first` ... `end - 1` (0-based); step k stands in row k mod rows.

        With `wait`, for before a save, an evaluation and the end: waits for these steps too and writes them.
        """
        self._pending.append((first, end, buffer))
        if wait:
            # As one interval: by the time the first is fetched the last may be done, and would seem to take no time.
            self._write(list(self._pending))
            self._pending.clear()
        elif len(self._pending) > 1:
            self._write([self._pending.popleft()])

    def saved(self) -> None:
        """A checkpoint was handed over to be written now."""
        self._saved_at = time.monotonic()

    def _write(self, intervals: Sequence[tuple[int, int, Any]]) -> None:
        fetched = [(range(first, end), np.asarray(buffer)) for first, end, buffer in intervals]
        first, end = intervals[0][0], intervals[-1][1]
        rates = self._throughput.completed(end, tokens=self._tokens_before(end) - self._tokens_before(first))
        for step, values in ((step, values) for steps, values in fetched for step in steps):
            row = dict(zip(self._metrics, values[step % len(values)].tolist(), strict=True))
            row["train/tokens"] = self._tokens_before(step + 1)
            if step + 1 == end:
                row |= rates.to_metrics() if rates else {}
                row |= self._throughput.to_metrics()
                row |= self._at_interval(end)
                self.last = row
            self._writers.write(step + 1, row)
            self._at_step(step, row)
        self._line.update(
            Status(
                step=end,
                total_steps=self._total_steps,
                loss=self.last["train/loss"],
                tokens_per_second=rates.tokens_per_second if rates else None,
                mfu=rates.mfu if rates else None,
                eta_seconds=self._throughput.eta(self._total_steps),
                data_wait_fraction=rates.data_wait_fraction if rates else None,
                checkpoint_age_seconds=None if self._saved_at is None else time.monotonic() - self._saved_at,
            )
        )
