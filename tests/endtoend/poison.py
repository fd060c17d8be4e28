"""For tests of spikes: data with bad rows in it, and a process that dies at a named moment of going back."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
from collections.abc import Callable, Sequence

import numpy as np

from t5x_scale.checkpoint import layout
from t5x_scale.checkpoint.manager import CheckpointManager
from t5x_scale.checkpoint.timeline import interventions_path
from t5x_scale.commands.training import course
from t5x_scale.core import batch as fields
from t5x_scale.data.objectives import CausalLm, RowKeys

# The moments at which `$DIE_AT` kills this process, and `$STOP_AT` tells it to stop, as a rewind comes to them.
MOMENTS = (
    "before the line",
    "half a line",
    "after the line",
    "one set aside",
    "all set aside",
    "restored",
    "before the next save",
)


@dataclasses.dataclass(frozen=True)
class Poisoned(CausalLm):
    """The causal model's rows, but some teach nonsense, and some have no finite loss. Global rows, [first, end).

    Every row that is asked for is noted in the file `$ROWS_LOG`, a batch a line.
    """

    nonsense: Sequence[tuple[int, int]] = ()
    not_finite: Sequence[tuple[int, int]] = ()

    def __call__(self, tokens: np.ndarray, keys: RowKeys, length: int) -> dict[str, np.ndarray]:
        batch = super().__call__(tokens, keys, length)
        if "ROWS_LOG" in os.environ:
            with open(os.environ["ROWS_LOG"], "a") as file:
                file.write(" ".join(map(str, keys.rows)) + "\n")
        bad = np.array([any(first <= row < end for first, end in self.nonsense) for row in keys.rows], bool)
        # Ids that no text has, so that the model is sure of the contrary.
        batch[fields.TARGET_TOKENS][bad] = 500 + batch[fields.TARGET_TOKENS][bad] % 100
        bad = np.array([any(first <= row < end for first, end in self.not_finite) for row in keys.rows], bool)
        batch[fields.LOSS_WEIGHTS][bad] = np.nan
        return batch


def _die(moment: str) -> None:
    """Kills this process, or tells it to stop, if this is the moment, and the intervention of number `$DIE_IN`."""
    for variable, number in (("DIE_AT", signal.SIGKILL), ("STOP_AT", signal.SIGTERM)):
        if os.environ.get(variable) == moment and _number() == int(os.environ.get("DIE_IN", "1")):
            os.kill(os.getpid(), number)


def _number() -> int:
    """The intervention that is being decided or carried out."""
    return _state["interventions"]


_state = {"interventions": 0, "saving": False}


def _append(write: Callable[..., None]) -> Callable[..., None]:
    def append(model_dir: str, intervention: object) -> None:
        _state["interventions"] = intervention.number
        _die("before the line")
        if os.environ.get("DIE_AT") == "half a line" and _number() == int(os.environ.get("DIE_IN", "1")):
            with open(interventions_path(model_dir), "ab") as file:
                file.write(b'{"number": 1, "spike_step": 2')
            _die("half a line")
        write(model_dir, intervention)
        _state["saving"] = True
        _die("after the line")

    return append


def _set_aside(rename: Callable[..., pathlib.Path]) -> Callable[..., pathlib.Path]:
    def set_aside(*arguments: object) -> pathlib.Path:
        target = rename(*arguments)
        _die("one set aside")
        return target

    return set_aside


def _restore(read: Callable[..., object]) -> Callable[..., object]:
    def restore(*arguments: object, **named: object) -> object:
        _die("all set aside")
        found = read(*arguments, **named)
        _die("restored")
        return found

    return restore


def _save(write: Callable[..., bool]) -> Callable[..., bool]:
    def save(*arguments: object, **named: object) -> bool:
        if _state["saving"]:
            _die("before the next save")
        return write(*arguments, **named)

    return save


if "DIE_AT" in os.environ or "STOP_AT" in os.environ:
    course.append_intervention = _append(course.append_intervention)
    layout.set_aside = _set_aside(layout.set_aside)
    CheckpointManager.restore = _restore(CheckpointManager.restore)
    CheckpointManager.save = _save(CheckpointManager.save)
