"""What may change when a run is continued: nothing silently.

A run record holds what a run was started with, as nested JSON values in three classes:

- *free*: may change without a word (number of steps, logging, evaluation, mesh, hosts);
- *recorded*: may change, and the change is written into the record with its step (schedules, optimiser
  hyperparameters, batch size, mixture from this step on);
- *refused*: makes it another run (shapes, seed, data store, optimiser tree).

The record is saved with every checkpoint and compared with the record of the command that continues it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from t5x_scale.core import trees
from t5x_scale.core.errors import UserError

# Entries of the environment that take no part in the bits of a result.
NOT_BITWISE = ("python",)
_MAX_NAMED = 3


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


@dataclasses.dataclass(frozen=True)
class Difference:
    """One entry that differs: its slash-separated key, the saved value and the value asked for."""

    key: str
    saved: Any
    asked: Any

    def render(self) -> str:
        """`key: saved -> asked`, the values as JSON."""
        return f"{self.key}: {_render(self.saved)} -> {_render(self.asked)}"


@dataclasses.dataclass(frozen=True)
class ResumeDecision:
    """A resume that may go ahead.

    Attributes:
      record: the record to save from now on: the current values and the whole list of changes.
      changes: the recorded differences of this resume, to be said to the user.
      warnings: whole sentences to log as warnings; empty where bitwise resume is promised.
    """

    record: dict[str, Any]
    changes: tuple[Difference, ...]
    warnings: tuple[str, ...]


def make_run_record(
    free: Mapping[str, Any],
    recorded: Mapping[str, Any],
    refused: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of a run that starts now. Values become what JSON makes of them (tuples become lists).

    Raises:
      TypeError: a value is not JSON.
    """
    record = {
        "free": free,
        "recorded": recorded,
        "refused": refused,
        "environment": environment,
        "changes": [],
    }
    return json.loads(json.dumps(record, sort_keys=True))


def compare_run_records(saved: Mapping[str, Any], current: Mapping[str, Any], step: int) -> ResumeDecision:
    """Decides whether `current` may continue the run that `saved` describes, from `step` on.

    Raises:
      UserError: a refused entry differs; names the key, both values and what to do.
    """
    refused = find_differences(saved.get("refused", {}), current["refused"])
    # An entry that an older version did not put on record cannot be compared; the leaves still are.
    unknown = [difference for difference in refused if difference.saved is _ABSENT]
    if len(unknown) < len(refused):
        raise UserError(_refusal([difference for difference in refused if difference.saved is not _ABSENT]))
    changes = find_differences(saved.get("recorded", {}), current["recorded"])
    entries = [
        {"step": step, "key": change.key, "from": _to_json(change.saved), "to": _to_json(change.asked)}
        for change in changes
    ]
    warnings = []
    if unknown:
        names = ", ".join(f"'{difference.key}'" for difference in unknown)
        warnings.append(f"the checkpoint has no record of {names}: taken as asked, not compared")
    reasons = find_environment_differences(saved.get("environment", {}), current["environment"])
    mesh = find_differences({"mesh": saved.get("free", {}).get("mesh")}, {"mesh": current["free"].get("mesh")})
    if reasons or mesh:
        named = "; ".join(difference.render() for difference in (*reasons, *mesh))
        warnings.append(f"bitwise resume is not promised, because the environment differs: {named}")
    record = {**current, "changes": [*saved.get("changes", []), *entries]}
    return ResumeDecision(record, tuple(changes), tuple(warnings))


def find_environment_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[Difference]:
    """The differences of two descriptions of an environment that can change the bits of a result."""
    return [
        difference for difference in find_differences(saved, current) if difference.key.split("/")[0] not in NOT_BITWISE
    ]


def find_differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[Difference]:
    """The differences of two nested JSON dicts, by key. Lists are compared whole; empty dicts hold nothing."""
    saved, asked = trees.flatten(saved), trees.flatten(asked)
    return [
        Difference(key, saved.get(key, _ABSENT), asked.get(key, _ABSENT))
        for key in sorted(saved.keys() | asked.keys())
        if not _is_equal(saved.get(key, _ABSENT), asked.get(key, _ABSENT))
    ]


def _refusal(differences: list[Difference]) -> str:
    named = "; ".join(
        f"'{difference.key}' is {_render(difference.saved)} in the checkpoint and {_render(difference.asked)} now"
        for difference in differences[:_MAX_NAMED]
    )
    more = f" (and {len(differences) - _MAX_NAMED} more)" if len(differences) > _MAX_NAMED else ""
    return (
        f"MODEL_DIR holds another run: {named}{more}; set it back to continue that run, or start a new one in a "
        "new MODEL_DIR, with INITIAL_CHECKPOINT_PATH to begin from its parameters"
    )


def _is_equal(left: Any, right: Any) -> bool:
    if _ABSENT in (left, right):
        return left is right
    if type(left) in (int, float) and type(right) in (int, float):
        return left == right
    # Python takes true for 1, JSON does not.
    return _render(left) == _render(right)


def _to_json(value: Any) -> Any:
    return None if value is _ABSENT else value


def _render(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, sort_keys=True)
