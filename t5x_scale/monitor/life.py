"""The life of a run over all of its processes' lives: where the time went, why each ended, and what happened.

All of it is read from MODEL_DIR: the phase logs say what the processes were doing, `metrics.jsonl` what became of it. A
run that is going on, or was killed at any moment, can be read as well as one that is done.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.monitor import phases
from t5x_scale.monitor.metric_log import MetricLog, ProcessRecord
from t5x_scale.monitor.phases import ASYNC_SAVE, DATA_WAIT, END, PHASES, STARTUP, STEP

# What time goes to beside the phases: steps that were done again, and no process.
LOST, DOWN = "lost", "down"
KINDS = (STEP, DATA_WAIT, *(phase for phase in PHASES if phase not in (STEP, DATA_WAIT)), LOST, DOWN)
RUNNING, KILLED = "running", "killed, or its machine is gone"
# Older than this, the heart of a process has stopped; in an object store it beats once a minute.
_FRESH_SECONDS = 180.0


@dataclasses.dataclass(frozen=True)
class ProcessLife:
    """One life of the first process.

    Attributes:
      began, ended: Unix seconds; of a process that was killed, the last that is known of it.
      first_step, last_step: steps done when it began to step, and the furthest; None where it came to no step.
      redone_steps: its steps that had to be done again, after its end or after a rewind.
      seconds: by what they went to, phases and `lost`.
      reason: why it ended.
      marks: (seconds since it began, phase, steps done) at each change of phase.
    """

    began: float
    ended: float
    first_step: int | None
    last_step: int | None
    redone_steps: int
    seconds: Mapping[str, float]
    reason: str
    marks: Sequence[tuple[float, str, int]]


@dataclasses.dataclass(frozen=True)
class RunLife:
    """The lives of a run, in order, and the heartbeats of the processes of the last."""

    lives: Sequence[ProcessLife]
    hosts: Sequence[Mapping[str, Any]]

    def seconds(self) -> dict[str, float]:
        """Seconds from the first life's beginning on, by what they went to (`KINDS`)."""
        total = {kind: sum(life.seconds.get(kind, 0.0) for life in self.lives) for kind in KINDS}
        gaps = (max(later.began - earlier.ended, 0.0) for earlier, later in itertools.pairwise(self.lives))
        return {**total, DOWN: sum(gaps)}


def read_life(model_dir: str | os.PathLike, log: MetricLog, now: float | None = None) -> RunLife:
    """The life of the run in `model_dir`; without lives where its processes left no phase log.

    Args:
      model_dir: of the run.
      log: its metrics.
      now: Unix seconds; this moment by default.
    """
    hosts = _read_hosts(model_dir)
    lines = list(_split(phases.read_phases(model_dir, 0)))
    elsewhere = [end for host in range(1, _count_logs(model_dir)) for end in _ends(model_dir, host)]
    records = list(log.processes)
    lives = []
    for index, own in enumerate(lines):
        record = _take_record(records, own)
        is_last = index == len(lines) - 1
        until = float("inf") if is_last else _began(lines[index + 1])
        reason = _reason(own, [end for end in elsewhere if _began(own) <= end["time"] < until])
        if reason == KILLED and is_last and hosts and hosts[0].get("pid") == own[0].get("pid"):
            is_fresh = (time.time() if now is None else now) - float(hosts[0]["time"]) < _FRESH_SECONDS
            reason = RUNNING if is_fresh else reason
        lives.append(_make_life(own, record, reason))
    return RunLife(lives, hosts)


def _make_life(lines: Sequence[Mapping[str, Any]], record: ProcessRecord | None, reason: str) -> ProcessLife:
    changes = [(float(line.get("at", 0.0)), line["phase"], int(line["step"])) for line in lines]
    changes = [change for change in changes if change[1] != ASYNC_SAVE]
    end = changes[-1][0]
    if record is not None:
        # A killed process said last how old it was when it wrote metrics.
        end = max(end, record.age) if reason in (KILLED, RUNNING) else end
    seconds: dict[str, float] = {STARTUP: changes[0][0]}
    for (at, phase, _), (later, _, _) in itertools.pairwise([*changes, (end, END, 0)]):
        seconds[phase] = seconds.get(phase, 0.0) + max(later - at, 0.0)
    seconds.pop(END, None)
    if record is not None:
        waited = min(record.waited, seconds.get(STEP, 0.0))
        seconds[DATA_WAIT] = seconds.get(DATA_WAIT, 0.0) + waited
        seconds[STEP] = seconds.get(STEP, 0.0) - waited
        lost = seconds[STEP] * min(record.redone_steps / max(record.steps, 1), 1.0)
        seconds[STEP] -= lost
        seconds[LOST] = lost
    began = _began(lines)
    return ProcessLife(
        began=began,
        ended=began + end,
        first_step=record.first_step if record else None,
        last_step=record.furthest_step if record else None,
        redone_steps=record.redone_steps if record else 0,
        seconds=seconds,
        reason=reason,
        marks=[*changes, (end, END, changes[-1][2])],
    )


def _began(lines: Sequence[Mapping[str, Any]]) -> float:
    return float(lines[0]["time"]) - float(lines[0].get("at", 0.0))


def _split(lines: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The lines of each life; it begins with a `startup` that names its process."""
    lives: list[list[dict[str, Any]]] = []
    for line in lines:
        if line["phase"] == STARTUP and "pid" in line:
            lives.append([])
        if lives:
            lives[-1].append(line)
    return lives


def _take_record(records: list[ProcessRecord], lines: Sequence[Mapping[str, Any]]) -> ProcessRecord | None:
    """The metrics of the same process: the next ones, unless they name another."""
    if records and records[0].pid in (None, lines[0]["pid"]):
        return records.pop(0)
    return None


def _reason(lines: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> str:
    own = next((str(line.get("reason", "")) for line in lines if line["phase"] == END), None)
    told = [f"process {end['process']}: {end['reason']}" for end in others if not _is_orderly(str(end["reason"]))]
    if own is None:
        return told[0] if told else KILLED
    return f"{own} ({told[0]})" if told and not _is_orderly(own) else own


def _is_orderly(reason: str) -> bool:
    return reason.startswith(("done", "told to stop"))


def _ends(model_dir: str | os.PathLike, process: int) -> list[dict[str, Any]]:
    lines = phases.read_phases(model_dir, process)
    return [{**line, "process": process} for line in lines if line["phase"] == END and "reason" in line]


def _count_logs(model_dir: str | os.PathLike) -> int:
    directory = phases.health_directory(model_dir)
    if not files.exists(directory):
        return 0
    # Not `glob`, which passes over what cannot be listed.
    names = [path.name for path in directory.iterdir() if path.name.startswith("phases_")]
    numbers = [name.removeprefix("phases_").partition(".")[0] for name in names]
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)


def _read_hosts(model_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """The heartbeats of the processes of the last life, in order; what cannot be read is left out."""
    found: list[dict[str, Any]] = []
    count = 1
    while len(found) < count:
        try:
            sign = files.read_json(phases.health_directory(model_dir) / f"host_{len(found)}.json")
            count = min(int(sign["processes"]), 1 << 16)
            sign["time"] = float(sign["time"])
        except (UserError, KeyError, TypeError, ValueError):
            break
        found.append(sign)
    return found
