"""The record of a run, `MODEL_DIR/metrics/metrics.jsonl`: its lines and how they are read back.

A line holds the numbers of one step, and its floats are written so that reading gives the same bits:

    {"step": 12, "time": 1770000000.25, "train/loss": 2.3456789, "optim/grad_norm": 0.98}
    {"step": 0, "time": 1770000000.00, "event": "start", "devices": 8}

Numbers that are not finite are the strings "NaN", "Infinity" and "-Infinity", so that every line is plain JSON.
`step` counts completed steps: the first step of a run writes 1, and an event at step s says what happened when s steps
were done. The log only grows. After a crash the steps since the last checkpoint are done, and written, again;
`read_metrics` keeps the last line of a (step, metric), and an event that moves the run back to step s ("start",
"rewind") voids the older lines of later steps.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
import re
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_scale.core import files

METRICS_DIRECTORY = "metrics"
FILE_NAME = "metrics.jsonl"
START, REWIND = "start", "rewind"
_MOVES_BACK = (START, REWIND)
# What stands for bytes that are no text. Lines are written in ASCII, so that it is never a part of one.
_NOT_UTF8 = "\ufffd"
_NAME = re.compile(r"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)+")
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric over the run: steps int64 [n] ascending and unique, values float64 [n], times float64 [n] (Unix)."""

    steps: np.ndarray
    values: np.ndarray
    times: np.ndarray


@dataclasses.dataclass
class ProcessRecord:
    """What one process of a run, from a start event to the next, has left.

    Attributes:
      first_step, furthest_step: steps done when it began, and the most it came to.
      pid: its number; None in an old record.
      steps: those it has done, the ones done again included.
      redone_steps: those among them that were void later: by its own rewinds and by the next start.
      age: seconds since it began, when it wrote last.
      waited: seconds of these in which it waited for data.
    """

    first_step: int
    furthest_step: int
    pid: int | None = None
    steps: int = 0
    redone_steps: int = 0
    age: float = 0.0
    waited: float = 0.0


@dataclasses.dataclass(frozen=True)
class MetricLog:
    """What `read_metrics` found.

    Attributes:
      series: metric name -> its values.
      events: the event lines in the order written, as they stand in the file plus "furthest_step": the furthest step
        the run had written before the event.
      damaged_lines: lines that are not of this format; they were skipped.
      seconds: time in which the run was alive: from each start event to the last line before the next.
      processes: what each process of the run left, in order.
    """

    series: dict[str, Series]
    events: list[dict[str, Any]]
    damaged_lines: int
    seconds: float
    processes: list[ProcessRecord] = dataclasses.field(default_factory=list)


def log_path(model_dir: str | os.PathLike) -> files.Path:
    """Where the record of the run in `model_dir` stands."""
    return files.to_path(model_dir) / METRICS_DIRECTORY / FILE_NAME


def check_names(names: Mapping[str, Any]) -> None:
    """Raises ValueError naming the first metric whose name is not `group/name`."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"metric '{name}' is not of the form group/name (letters, digits, '_', '-', '.')")


def to_json_number(value: numbers.Real) -> int | float | str:
    """`value` as JSON can hold it exactly: an int, a finite float, or one of "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def format_metrics(step: int, time: float, metrics: Mapping[str, numbers.Real]) -> str:
    """One line of metrics, without a newline."""
    return json.dumps({"step": step, "time": time, **{name: to_json_number(v) for name, v in metrics.items()}})


def format_event(step: int, time: float, event: str, details: Mapping[str, Any]) -> str:
    """One event line, without a newline. `details` are plain JSON values; they cannot replace step, time or event."""
    fixed = {"step": step, "time": time, "event": event}
    return json.dumps({**fixed, **details, **fixed}, allow_nan=False)


def read_metrics(model_dir: str | os.PathLike) -> MetricLog:
    """Reads the record of a run; empty where nothing has been written yet.

    A last line that a killed process left half-written is ignored, and so are (and counted) damaged ones.
    """
    reader = _Reader()
    for line in files.read_appended(log_path(model_dir), errors="replace"):
        reader.add(line)
    return reader.finish()


@dataclasses.dataclass
class _Column:
    steps: array = dataclasses.field(default_factory=lambda: array("q"))
    values: array = dataclasses.field(default_factory=lambda: array("d"))
    times: array = dataclasses.field(default_factory=lambda: array("d"))

    def drop_after(self, step: int) -> None:
        # Steps grow between two events, so what is void stands at the end.
        while self.steps and self.steps[-1] > step:
            self.steps.pop(), self.values.pop(), self.times.pop()

    def to_series(self) -> Series:
        steps = np.array(self.steps, np.int64)
        _, from_end = np.unique(steps[::-1], return_index=True)
        last = len(steps) - 1 - from_end
        return Series(steps[last], np.array(self.values)[last], np.array(self.times)[last])


class _Reader:
    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}
        self._events: list[dict[str, Any]] = []
        self._damaged = 0
        self._seconds = 0.0
        self._span: tuple[float, float] | None = None
        self._furthest = 0
        self._processes: list[ProcessRecord] = []

    def add(self, line: str) -> None:
        try:
            if _NOT_UTF8 in line:
                raise ValueError("bytes that are no text")
            record = json.loads(line)
            step, time = record.pop("step"), float(record.pop("time"))
            if type(step) is not int or not 0 <= step < 2**62:
                raise ValueError("step")
            if "event" in record:
                self._add_event(step, time, record)
            else:
                values = {name: _to_float(value) for name, value in record.items()}
                for name, value in values.items():
                    column = self._columns.setdefault(name, _Column())
                    column.steps.append(step)
                    column.values.append(value)
                    column.times.append(time)
                self._furthest = max(self._furthest, step)
                self._add_to_process(step, values)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            self._damaged += 1
            return
        self._span = (self._span[0] if self._span else time, time)

    def _add_event(self, step: int, time: float, record: dict[str, Any]) -> None:
        self._events.append({**record, "step": step, "time": time, "furthest_step": self._furthest})
        if record["event"] in _MOVES_BACK:
            if self._processes:
                self._processes[-1].redone_steps += max(self._furthest - step, 0)
            for column in self._columns.values():
                column.drop_after(step)
            self._furthest = step
        if record["event"] == START:
            self._close_span()
            pid = record.get("pid")
            self._processes.append(ProcessRecord(step, step, pid if type(pid) is int else None))

    def _add_to_process(self, step: int, values: Mapping[str, float]) -> None:
        if not self._processes:
            return
        process = self._processes[-1]
        process.furthest_step = max(process.furthest_step, step)
        process.steps += "train/loss" in values
        if (age := values.get("goodput/seconds")) is not None and math.isfinite(age):
            process.age = age
            process.waited = age * values.get("goodput/data_wait_fraction", 0.0)

    def _close_span(self) -> None:
        if self._span:
            self._seconds += max(self._span[1] - self._span[0], 0.0)
        self._span = None

    def finish(self) -> MetricLog:
        self._close_span()
        series = {name: column.to_series() for name, column in self._columns.items() if column.steps}
        return MetricLog(series, self._events, self._damaged, self._seconds, self._processes)


def _to_float(value: Any) -> float:
    if isinstance(value, str):
        return _NOT_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("not a number")
    return float(value)
