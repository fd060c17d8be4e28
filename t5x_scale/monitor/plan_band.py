"""The loss of a run against the curve of its plan: where it should move, and when it does not.

`t5x_scale plan --output=DIR` writes DIR/plan.json; a run that is given it (`PLAN`) keeps it as MODEL_DIR/plan.json. Its
`curve` holds the predicted loss over tokens with a band, as lists of equal length:

    {"law": "besiroglu", "unit": "nats a token …", "tokens": [...], "loss": [...], "low": [...], "high": [...]}

What lies before its first point is not judged: laws say nothing about first steps.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.monitor.metric_log import Series
from t5x_scale.monitor.status import StatusLine
from t5x_scale.monitor.writers import MetricWriters

FILE_NAME = "plan.json"
ABOVE, BELOW, WITHIN = "above", "below", ""
# Losses that are averaged before they are judged: of single steps about one in a hundred lies far out.
WINDOW = 50
_COLUMNS = ("tokens", "loss", "low", "high")


@dataclasses.dataclass(frozen=True)
class PlanBand:
    """A predicted curve.

    Attributes:
      law: that predicts it.
      unit: of its loss, and on which corpus.
      tokens, loss, low, high: float64 [points]; tokens ascend.
    """

    law: str
    unit: str
    tokens: np.ndarray
    loss: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def expected(self, tokens: float | np.ndarray) -> np.ndarray:
        """The predicted loss after so many tokens; NaN before the first point, level after the last."""
        return self._at(self.loss, tokens)

    def band(self, tokens: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest loss that are in order."""
        return self._at(self.low, tokens), self._at(self.high, tokens)

    def is_outside(self, tokens: float, loss: float) -> str:
        """`above` or `below` the band; "" within it, and where there is none. A loss that is no number is above."""
        low, high = self.band(tokens)
        if not math.isfinite(low):
            return WITHIN
        if not loss <= high:
            return ABOVE
        return BELOW if loss < low else WITHIN

    def _at(self, values: np.ndarray, tokens: float | np.ndarray) -> np.ndarray:
        # Laws are close to straight in logarithms.
        place = np.log(np.maximum(tokens, 1.0))
        return np.exp(np.interp(place, np.log(self.tokens), np.log(values), left=math.nan))


class PlanWatch:
    """Sees the metrics of every step, and says when the mean of the last `WINDOW` losses leaves the band or returns.

    Begins afresh with each process: a run that is resumed outside of its band says so again.
    """

    def __init__(self, band: PlanBand | None, writers: MetricWriters, line: StatusLine):
        """Args:
        band: of the plan; None where there is none, and then nothing is said.
        writers, line: where it is said.
        """
        self._band, self._writers, self._line = band, writers, line
        self._losses: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self._side = WITHIN

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Looks at the metrics of a step, counted from 0."""
        if self._band is None:
            return
        self._losses.append(metrics["train/loss"])
        if len(self._losses) < WINDOW:
            return
        tokens, mean = metrics["train/tokens"], sum(self._losses) / WINDOW
        side = self._band.is_outside(tokens, mean)
        if side == self._side:
            return
        self._side = side
        low, high = (float(value) for value in self._band.band(tokens))
        self._writers.event("plan", step + 1, side=side or "within", loss=mean, low=low, high=high)
        where = f"{side} the band" if side else "within the band again"
        self._line.note(f"step {step + 1}: the loss {mean:.3f} is {where} of the plan, {low:.3f} to {high:.3f}")

    def to_metrics(self, tokens: float) -> dict[str, float]:
        """The curve at this place of the run, to stand beside the loss in TensorBoard; nothing before it begins."""
        expected = math.nan if self._band is None else float(self._band.expected(tokens))
        if self._band is None or not math.isfinite(expected):
            return {}
        low, high = self._band.band(tokens)
        return {"plan/expected_loss": expected, "plan/low": float(low), "plan/high": float(high)}


@dataclasses.dataclass(frozen=True)
class PlanCourse:
    """The band along the steps of a run.

    Attributes:
      law: that predicts it.
      steps: int64 [n] with a band.
      expected, low, high: float64 [n].
    """

    law: str
    steps: np.ndarray
    expected: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def to_json(self, loss: float | None) -> dict[str, Any]:
        """Where the run stands, from the mean of its last losses."""
        expected, low, high = (float(values[-1]) for values in (self.expected, self.low, self.high))
        side = None if loss is None else ABOVE if loss > high else BELOW if loss < low else "within"
        return {"law": self.law, "expected_loss": expected, "low": low, "high": high, "side": side}


def make_course(band: PlanBand | None, tokens: Series | None) -> PlanCourse | None:
    """The band at the steps at which tokens are on record; None without a plan, or before its first point."""
    if band is None or tokens is None:
        return None
    inside = np.isfinite(tokens.values) & np.isfinite(band.expected(tokens.values))
    if not inside.any():
        return None
    seen = tokens.values[inside]
    return PlanCourse(band.law, tokens.steps[inside], band.expected(seen), *band.band(seen))


def load_plan_band(model_dir: str | os.PathLike) -> PlanBand | None:
    """The curve of MODEL_DIR/plan.json; None where there is no plan, or one without a curve.

    Raises:
      UserError: the file is no plan.
    """
    path = files.to_path(model_dir) / FILE_NAME
    if not files.exists(path):
        return None
    return read_plan_band(path)


def read_plan_band(path: str | os.PathLike) -> PlanBand | None:
    """The curve of a plan; None for a plan of a continued run, which has none.

    Raises:
      UserError: it cannot be read, or is no plan.
    """
    try:
        record = json.loads(files.read_bounded(path))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the plan {path}: {error}") from error
    if not isinstance(record, dict) or "choices" not in record:
        raise UserError(f"{path} is no plan; `t5x_scale plan --output=DIR` writes DIR/{FILE_NAME}")
    curve = record.get("curve")
    return None if curve is None else _make(curve, str(path))


def find_plan_band(plan: str | os.PathLike | None, model_dir: str | os.PathLike) -> PlanBand | None:
    """The curve of a plan, or, where none is named or it is gone by now, of the one that the run has kept.

    Raises:
      UserError: there is no such plan, neither there nor here, or it is none.
    """
    if plan is not None and (files.exists(plan) or not files.exists(files.to_path(model_dir) / FILE_NAME)):
        return read_plan_band(plan)
    return load_plan_band(model_dir)


def keep_plan(plan: str | os.PathLike | None, model_dir: str | os.PathLike) -> None:
    """Copies a plan to MODEL_DIR/plan.json, over an older one; one that is gone by now is there already."""
    kept = files.to_path(model_dir) / FILE_NAME
    if plan is None or files.to_path(plan) == kept or not files.exists(plan):
        return
    files.write_text(kept, files.read_bounded(plan).decode())


def _make(curve: Mapping[str, Any], where: str) -> PlanBand:
    try:
        columns = [np.asarray(curve[name], dtype=np.float64) for name in _COLUMNS]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the curve of {where} lacks numbers: {error}") from error
    tokens, loss, low, high = columns
    shapes = {column.shape for column in columns}
    ordered = len(shapes) == 1 and tokens.ndim == 1 and len(tokens) > 0 and bool(np.all(np.diff(tokens) > 0))
    if not ordered or not np.all((tokens > 0) & (low > 0) & (low <= loss) & (loss <= high) & np.isfinite(high)):
        raise UserError(f"the curve of {where} is no band: tokens must ascend, and low <= loss <= high")
    return PlanBand(str(curve.get("law", "")), str(curve.get("unit", "")), tokens, loss, low, high)
