"""What was done about a run on its way: `MODEL_DIR/interventions.jsonl`, and which checkpoints it made obsolete.

One JSON object a line, for every time that a run went back:

    {"number": 1, "spike_step": 5230, "reason": "…", "rewind_to": 5000, "skip_rows": [[2626560, 2780160]], "time": …}

A line is on the disk before anything is done about it, and what is done about it follows from the lines alone, so that
a crash at any moment in between ends like none: whoever starts the run reads the lines, sets aside the checkpoints of
the course that was given up, restores the newest of the rest and jumps over `skip_rows`. Every checkpoint says how many
interventions the run had behind it and which (`timeline` and `timeline_digest` in its metadata); one above the
`rewind_to` of a later intervention is of that other course. A last line without its end was never decided, unless a
checkpoint knows it: what a checkpoint knows and the file does not hold was lost, and the run must not go on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.checks import is_integer
from t5x_scale.core.describe import digest
from t5x_scale.core.errors import UnavailableError, UserError
from t5x_scale.core.storage_errors import describe_write, find_absence

FILE_NAME = "interventions.jsonl"
# The entry of a checkpoint's metadata: the number of interventions that the run had behind it.
KNOWN = "timeline"
# And what they were; checkpoints from before there was one have none.
DIGEST = "timeline_digest"
# Rows and steps are numbers below this one: no run has as many, and sums of them are far from overflowing.
_TOO_MANY = 2**48
Rows = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Intervention:
    """A decision to go back.

    Attributes:
      number: from 1, without gaps.
      spike_step: the step, from 0, at which the spike began.
      reason: in words.
      rewind_to: steps done in the checkpoint to go back to; 0 may be the beginning of the run.
      skip_rows: intervals [first, end) of global rows that are not delivered from there on.
      time: Unix seconds, for people.
    """

    number: int
    spike_step: int
    reason: str
    rewind_to: int
    skip_rows: tuple[Rows, ...]
    time: float


def interventions_path(model_dir: str | os.PathLike) -> files.Path:
    """Where the interventions of the run in `model_dir` stand."""
    return files.to_path(model_dir) / FILE_NAME


def load_interventions(model_dir: str | os.PathLike) -> tuple[Intervention, ...]:
    """The interventions of a run, in order; none where there is no file.

    Raises:
      UserError: a line is not what was written. Without it nobody knows which rows the run has jumped over, so that
        it must not go on.
    """
    path = interventions_path(model_dir)
    try:
        lines = files.read_appended(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: byte {error.start} is not UTF-8; put back a copy of it") from error
    return tuple(_parse(line, number, path) for number, line in enumerate(lines, 1))


def append_intervention(model_dir: str | os.PathLike, intervention: Intervention) -> None:
    """Writes an intervention, and returns when it would survive the machine. One process of a run calls this.

    Raises:
      UserError: it cannot be written, or nobody knows whether it is.
    """
    path = interventions_path(model_dir)
    line = json.dumps(dataclasses.asdict(intervention), allow_nan=False)
    fate = "nothing was done about the spike"
    try:
        with files.AppendLog(path) as log:
            log.write(line)
            fate = "if the decision stands there all the same, the same command carries it out"
            log.sync()
    except Exception as error:
        kind = UnavailableError if find_absence(error) else UserError
        raise kind(f"{path} cannot be written ({describe_write(error)}): {fate}") from error


def known_interventions(metadata: Mapping[str, Any]) -> int:
    """How many interventions the run of a checkpoint had behind it."""
    return metadata.get(KNOWN, 0)


def describe_known(interventions: Sequence[Intervention]) -> dict[str, Any]:
    """The entries of a checkpoint's metadata that say which interventions the run had behind it."""
    return {KNOWN: len(interventions), DIGEST: _digest(interventions)}


def check_known(
    metadata: Mapping[str, Any], step: int, interventions: Sequence[Intervention], path: str | os.PathLike
) -> None:
    """Checks that what a checkpoint knows stands in the file. The file only ever grows.

    Args:
      metadata: of the checkpoint.
      step: of the checkpoint.
      interventions: those in the file.
      path: of the file.

    Raises:
      UserError: lines were lost, or are others. Which rows the run jumped over, and which checkpoints are of a course
        that was given up, would be guessed.
    """
    known = known_interventions(metadata)
    if known > len(interventions):
        held = len(interventions)
        what = f"{path} holds fewer interventions ({held}) than the checkpoint of step {step} knows ({known})"
    elif DIGEST in metadata and metadata[DIGEST] != _digest(interventions[:known]):
        what = f"lines 1 to {known} of {path} are not those that the checkpoint of step {step} knows"
    else:
        return
    raise UserError(
        f"{what}: put back a copy of the file, or begin a new run from that checkpoint (INITIAL_CHECKPOINT_PATH, and a "
        "MODEL_DIR of its own); nothing was changed"
    )


def is_stale(step: int, known: int, interventions: Sequence[Intervention]) -> bool:
    """Whether a checkpoint of `step` that knows the first `known` interventions is of a course that was given up."""
    return any(step > intervention.rewind_to for intervention in interventions[known:])


def all_skipped(interventions: Iterable[Intervention]) -> tuple[Rows, ...]:
    """All intervals of rows that interventions jumped over."""
    return tuple(rows for intervention in interventions for rows in intervention.skip_rows)


def _digest(interventions: Iterable[Intervention]) -> str:
    """Of all that a run follows from: the same decision may be taken at another time."""
    return digest([dataclasses.asdict(dataclasses.replace(one, time=0.0)) for one in interventions])


def _parse(line: str, number: int, path: files.Path) -> Intervention:
    try:
        value = json.loads(line)
        rows = tuple((_whole(first), _whole(end)) for first, end in value["skip_rows"])
        found = Intervention(
            number=_whole(value["number"]),
            spike_step=_whole(value["spike_step"]),
            reason=str(value["reason"]),
            rewind_to=_whole(value["rewind_to"]),
            skip_rows=rows,
            time=float(value["time"]),
        )
        is_empty = any(first >= end for first, end in rows)
        if found.number != number or not math.isfinite(found.time) or is_empty or found.rewind_to > found.spike_step:
            raise ValueError("its numbers do not fit together")
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise UserError(f"line {number} of {path} is damaged ({error}); put back a copy of the file") from error
    return found


def _whole(value: object) -> int:
    if not is_integer(value) or not 0 <= value < _TOO_MANY:
        raise ValueError(f"{value!r} is not a number of steps or rows")
    return value
