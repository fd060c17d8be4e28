"""Laws fitted to rows: constants with intervals, the error on rows kept away, and the record that a plan reads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws import Fit, Law, find_law
from t5x_scale.sweeps.rows import Row
from t5x_scale.sweeps.tables import make_data

SAMPLES, HELD_OUT = 200, 0.2
# From there on a bootstrap over rows knows what it does not know.
_ROWS_A_CONSTANT = 1.5


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A law fitted to rows.

    Attributes:
      fit: to all of them.
      data: arrays [rows] that it was fitted to.
      held_out_error: of a fit that was not shown some of the rows, on these, root mean square (of logarithms, for a
        law of `log`); None where there are too few to keep any away.
      unit: of what is predicted, and on which text.
      source: of the loss, where it is that of one source.
    """

    fit: Fit
    data: dict[str, np.ndarray]
    held_out_error: float | None
    unit: str
    source: str | None = None

    @property
    def law(self) -> Law:
        return self.fit.law

    @property
    def errors(self) -> np.ndarray:
        """[rows] predicted over observed, less one."""
        quantities = {name: self.data[name] for name in self.law.quantities if name in self.data}
        return self.law.predict(**quantities) / self.data[self.law.predicts] - 1


def fit_rows(
    name: str,
    rows: Sequence[Row],
    source: str | None = None,
    samples: int = SAMPLES,
    held_out: float = HELD_OUT,
    seed: int = 0,
) -> Fitted:
    """Fits the law of that name.

    Args:
      name: of the law.
      rows: of the runs.
      source: whose loss is fitted, where runs have several.
      samples: of the bootstrap.
      held_out: share of the rows that is kept from a second fit, to be predicted.
      seed: of both.

    Raises:
      UserError: no such law, or the rows do not carry what it needs.
    """
    kind = type(find_law(name))
    if not kind.published():
        raise UserError(f"the law {name} has no constants to fit")
    if not 0 <= held_out < 1:
        raise UserError(f"held_out is {held_out}; expected a share from 0 to below 1")
    data = make_data(kind, rows, source)
    fit = kind.fit(data, samples=samples, seed=seed)
    count = len(data[kind.predicts])
    kept = round(held_out * count)
    error = None
    if kept and count - kept > len(fit.law.published()):
        error = kind.fit(data, held_out=held_out, seed=seed).held_out_error
    units = {row["unit"] for row in rows if "unit" in row}
    own = kind.predicts == "loss" and source is None and len(units) == 1
    of_source = f"nats a token of {source}" if source else f"{kind.unit.split(' of ')[0]} of the fitted runs"
    return Fitted(fit, data, error, units.pop() if own else of_source, source)


def to_json(fitted: Fitted) -> dict[str, Any]:
    """What `t5x_scale plan --laws` reads, and how sure it is."""
    fit, law = fitted.fit, fitted.law
    error = fitted.held_out_error
    return {
        "law": law.name,
        "constants": {name: getattr(law, name) for name in law.published()},
        "intervals": {name: list(map(_plain, ends)) for name, ends in fit.intervals.items()},
        "at_bound": {name: _plain(bound) for name, bound in fit.at_bound.items()},
        "level": fit.level,
        "rows": fit.rows,
        "objective": fit.objective,
        "held_out_error": error,
        "worst_error": float(np.max(np.abs(fitted.errors))),
        "domain": {name: list(ends) for name, ends in fit.domain.ranges.items()},
        "unit": fitted.unit,
        "source": f"fitted to {fit.rows} runs" + (f", {fitted.source}" if fitted.source else ""),
    }


def to_text(fitted: Fitted) -> str:
    """The fit for people: a line for each constant, and how well it predicts."""
    law, published = fitted.law, fitted.law.published()
    head = f"{law.name}: {fitted.fit.rows} rows, {fitted.unit}"
    lines = [head, f"  {'':12}{'fitted':>12}   {f'{fitted.fit.level:.0%} interval':^25}   {'published':>10}"]
    for name in published:
        ends = fitted.fit.intervals.get(name)
        interval = "-" if ends is None else _interval(ends)
        paper = published[name].value
        shown = "unknown" if np.isnan(paper) else f"{paper:.4g}"
        value = fitted.fit.at_bound.get(name, getattr(law, name))
        lines.append(f"  {name:12}{value:>12.4g}   {interval:^25}   {shown:>10}")
    for name, bound in fitted.fit.at_bound.items():
        lines.append(f"  {name} is at its bound: these data cannot tell it from {'0' if bound == 0 else 'infinity'}")
    if doubt := _doubt(fitted):
        lines.append(f"  {doubt}")
    errors = np.abs(fitted.errors)
    held = "none kept away" if fitted.held_out_error is None else f"{fitted.held_out_error:.2%} on rows kept away"
    lines.append(f"  error: {np.sqrt(np.mean(errors**2)):.2%}, at most {errors.max():.2%}; {held}")
    return "\n".join(lines)


def _doubt(fitted: Fitted) -> str:
    """That there are hardly more rows than constants, if so: measured, intervals of 90 % then hold half of the time."""
    rows, constants = fitted.fit.rows, len(fitted.law.published())
    if rows >= _ROWS_A_CONSTANT * constants:
        return ""
    what = "these intervals are too narrow" if fitted.fit.intervals else "nothing is left to find intervals by"
    return f"{rows} rows for {constants} constants: {what}"


def _interval(ends: tuple[float, float]) -> str:
    low, high = (f"{end:.4g}" if 0 < abs(end) < math.inf else f"{end:g} (bound)" for end in ends)
    return "at its bound" if ends[0] == ends[1] and ends[0] in (0, math.inf) else f"{low} to {high}"


def _plain(number: float) -> float | str:
    """JSON has no infinity."""
    return number if math.isfinite(number) else "infinity"
