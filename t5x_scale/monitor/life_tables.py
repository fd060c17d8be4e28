"""The life of a run as tables of text, for the terminal and the page alike."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.monitor.life import DOWN, LOST, RUNNING, RunLife
from t5x_scale.monitor.metric_log import MetricLog
from t5x_scale.monitor.phases import CHECKPOINT, COMPILE, DATA_WAIT, EVALUATION, PROBE, RESTORE, REWIND, STARTUP, STEP
from t5x_scale.monitor.status import format_duration

_INTERVENTIONS = "interventions.jsonl"
_NEWEST = 50
_LABELS = {
    STEP: "steps",
    DATA_WAIT: "waiting for data",
    STARTUP: "starting",
    RESTORE: "restoring",
    COMPILE: "compiling",
    CHECKPOINT: "saving",
    EVALUATION: "evaluating",
    REWIND: "rewinding",
    PROBE: "probing",
    LOST: "steps done again later",
    DOWN: "no process",
}


class Table(NamedTuple):
    """A heading, the names of the columns, and rows; every column but the first is of numbers."""

    heading: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def make_tables(model_dir: str | os.PathLike, life: RunLife, log: MetricLog) -> list[Table]:
    """Everything about the life of a run that there is to tell; tables without rows are left out."""
    tables = [
        Table("Where the time went", ["", "time", "share"], _time_rows(life)),
        Table("Processes", ["ended", "from step", "to step", "time", "done again"], _process_rows(life)),
        Table("Rewinds", ["reason", "spike at", "back to", "rows skipped"], _intervention_rows(model_dir)),
        Table("What happened", ["", "at step"], _event_rows(log)),
        Table("Hosts", ["host", "process", "step", "phase", "beat", "data wait", "memory"], _host_rows(life)),
    ]
    return [table for table in tables if table.rows]


def _time_rows(life: RunLife) -> list[list[str]]:
    seconds = life.seconds()
    total = sum(seconds.values())
    kept = sorted(((value, kind) for kind, value in seconds.items() if value > 0), reverse=True)
    return [[_LABELS[kind], _format_seconds(value), f"{value / total:.1%}"] for value, kind in kept]


def _process_rows(life: RunLife) -> list[list[str]]:
    return [
        [
            entry.reason,
            _count(entry.first_step),
            _count(entry.last_step),
            _format_seconds(entry.ended - entry.began),
            _count(entry.redone_steps),
        ]
        for entry in life.lives
    ]


def _intervention_rows(model_dir: str | os.PathLike) -> list[list[str]]:
    rows: list[list[str]] = []
    try:
        lines = files.read_appended(files.to_path(model_dir) / _INTERVENTIONS, "replace")
    except UserError:
        return rows  # As below.
    for line in lines:
        try:
            entry = json.loads(line)
            skipped = sum(int(end) - int(first) for first, end in entry["skip_rows"])
            rows.append([str(entry["reason"]), *(_count(int(entry[name])) for name in ("spike_step", "rewind_to"))])
            rows[-1].append(_count(skipped))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # Whoever continues the run refuses a damaged line; here it is only not shown.
    return rows


def _event_rows(log: MetricLog) -> list[list[str]]:
    rows = [[text, _count(event["step"])] for event in log.events if (text := _tell(event)) is not None]
    more = [[f"… and {len(rows) - _NEWEST:,} before", ""]] if len(rows) > _NEWEST else []
    return more + rows[-_NEWEST:]


def _tell(event: Mapping[str, Any]) -> str | None:
    kind, reason = event["event"], str(event.get("reason", ""))
    if kind in ("fallback", "failed_save", "warning"):
        return str(event.get("text"))
    if kind in ("spike", "refused", "stop"):
        return f"{kind}: {reason}"
    if kind == "watchdog":
        return (
            f"the watchdog ended process {event.get('process')} after {event.get('seconds')} s in {event.get('phase')}"
        )
    if kind == "straggler":
        over = " no longer" if event.get("over") else ""
        device = f", device {event['device']}" if "device" in event else ""
        where = f"process {event.get('process')} on {event.get('host')}{device}"
        return f"{where} is{over} slower than its peers ({event.get('measure')}, {event.get('ratio')} times)"
    if kind == "probe" and event.get("differences"):
        kinds = ", ".join(f"{each.get('kind')} on devices {each.get('devices')}" for each in event["differences"])
        return f"silent data corruption: {kinds}"
    return None


def _host_rows(life: RunLife) -> list[list[str]]:
    """Of a run that is going on; later nobody asks."""
    if not life.lives or life.lives[-1].reason != RUNNING:
        return []
    rows = []
    for sign in life.hosts:
        waited = (sign.get("own_seconds") or {}).get("data")
        memory = sign.get("memory_bytes")
        rows.append(
            [
                str(sign.get("host")),
                _count(sign.get("process")),
                _count(sign.get("step")),
                str(sign.get("phase")),
                f"{_format_seconds(max(time.time() - sign['time'], 0.0))} ago",
                "–" if waited is None else f"{waited:.3g} s a step",
                "–" if memory is None else f"{memory / 2**30:.2f} GiB",
            ]
        )
    return rows


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 10 else format_duration(seconds)


def _count(value: Any) -> str:
    return "–" if value is None else f"{value:,}"
