"""What every source of batches asks of the state that it is to go on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.skipping import SkipList


def check_parts(now: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Compares `parts`, what the bytes of a row depend on beside its source, with those in a state.

    Raises:
      UserError: naming the parts that differ.
    """
    saved = state["parts"]
    changed = [name for name in sorted({*now, *saved}) if now.get(name) != saved.get(name)]
    if changed:
        raise UserError(
            f"the data differs from the checkpoint's in: {', '.join(changed)}; put it back or start a new run"
        )


def join_skips(ahead: SkipList, state: Mapping[str, Any], step: int) -> SkipList:
    """What a run skips that goes on from a state before `step`: what it has skipped, and what lies ahead.

    Raises:
      UserError: `ahead` skips rows that the run has already been through.
    """
    past = SkipList(state["skip"])
    joined = SkipList([*past.intervals, *ahead.intervals])
    row = np.array([state["row"]])
    if state["row"] and past.to_global(row - 1) != joined.to_global(row - 1):
        raise UserError(
            f"rows to skip must lie ahead: at step {step} the run has already been through the global rows "
            f"before {int(past.to_global(row)[0])}"
        )
    return joined


def check_mixture(digest: str, state: Mapping[str, Any], step: int) -> None:
    """Compares the digest of the mixture up to the position of a state before `step` with the one in the state.

    Raises:
      UserError: the rows so far would come from elsewhere; says how a mixture is changed from a step on.
    """
    if digest != state["mixture"]:
        raise UserError(
            f"the mixture of the steps before {step} is not the one that the run was trained on: put it back, or "
            f"change it from step {step} on by MIXTURE_RATES = @rates.RateSchedule() with "
            f"rates.RateSchedule.pieces = ((0, {{the old rates}}), ({step}, {{the new rates}}))"
        )
