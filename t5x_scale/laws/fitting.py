"""Fits of laws to runs: a robust loss, many starts, intervals by bootstrap, and the error on runs kept away.

As Hoffmann et al. (2022, section D.2) fitted: the **sum** over runs of Huber losses of log prediction minus log
observation, with a threshold of 1e-3, from every point of a grid of starts, of which the best end counts. They averaged
instead of summing: the objective was so small that their L-BFGS stopped early, and that made the published intervals
implausible (Besiroglu et al. 2024). Here the objective is summed, and its minimum is sought by scipy's
trust-region least squares, whose tests for convergence do not depend on such a factor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from scipy import optimize

from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Fit, Law

HUBER_DELTA = 1e-3

# For what is no number, so far from the data that every step towards them is an improvement.
_FAR = 1e3

# What data do not fix runs away, and must stay a number.
_LARGEST_LOG = 700.0

# What moves predictions by less than this share of the residuals, the data cannot tell.
_UNTOLD = 1e-3

_TIGHT = {"ftol": 1e-12, "xtol": 1e-12, "gtol": 1e-12}

L = TypeVar("L", bound=Law)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Runs: quantities and observations, [rows] each."""

    quantities: Mapping[str, np.ndarray]
    observed: np.ndarray

    def __len__(self) -> int:
        return len(self.observed)

    @property
    def distinct(self) -> int:
        """How many differ in more than what was observed: the same run again fixes nothing more."""
        return len(np.unique(np.stack(list(self.quantities.values())), axis=1).T) if self.quantities else 1

    def take(self, index: np.ndarray) -> _Rows:
        return _Rows({name: values[index] for name, values in self.quantities.items()}, self.observed[index])


@dataclasses.dataclass(frozen=True)
class _Space:
    """Constants as the vector in which they are fitted: logarithms of those that must be positive."""

    law: type[Law]
    names: tuple[str, ...]
    signed: np.ndarray
    fixed: Mapping[str, float]

    def to_vector(self, constants: Mapping[str, float]) -> np.ndarray:
        missing = [name for name in self.names if name not in constants]
        if missing:
            raise UserError(f"a fit of {self.law.name} starts from all of its constants; {', '.join(missing)} lack")
        values = np.array([constants[name] for name in self.names], dtype=float)
        if np.any(values[~self.signed] <= 0):
            raise UserError(f"a fit of {self.law.name} cannot start from constants that are not positive: {constants}")
        return np.where(self.signed, values, np.log(np.where(self.signed, 1.0, values)))

    def to_law(self, vector: np.ndarray) -> Law:
        logs = np.clip(np.where(self.signed, 0.0, vector), -_LARGEST_LOG, _LARGEST_LOG)
        values = np.where(self.signed, vector, np.exp(logs))
        return self.law(**dict(zip(self.names, map(float, values), strict=True)), **self.fixed)

    def residuals(self, vector: np.ndarray, rows: _Rows) -> np.ndarray:
        """[rows] predictions minus observations, of logarithms where the law says so."""
        try:
            with np.errstate(all="ignore"):
                found = _residuals(self.to_law(vector), rows)
        except (OverflowError, ZeroDivisionError):
            # Constants are Python's floats, which raise where arrays become infinite.
            return np.full(len(rows), _FAR)
        return np.where(np.isfinite(found), found, _FAR)


def fit_law(
    law: type[L],
    data: Mapping[str, Any],
    *,
    starts: Iterable[Mapping[str, float]] | None = None,
    fixed: Mapping[str, float] | None = None,
    delta: float | None = HUBER_DELTA,
    polished: int = 12,
    samples: int = 0,
    level: float = 0.9,
    held_out: float | np.ndarray = 0.0,
    seed: int = 0,
) -> Fit[L]:
    """Fits the constants of a law.

    Args:
      law: the class of the law.
      data: arrays [rows] (or numbers) by quantity and, under `law.predicts`, what was observed.
      starts: constants to start from; the law's own grid if None.
      fixed: constants that are not fitted.
      delta: threshold between squared and absolute residuals; None is least squares.
      polished: of all starts, so many with the lowest objective are followed to their minima.
      samples: of the bootstrap over rows; each is fitted from the minimum of all rows. None is drawn where there are
        no more different rows than constants: nothing is left over to tell the noise by.
      level: share of the bootstrap between the ends of an interval.
      held_out: rows kept away from the fit: a share, drawn at random, or a mask of [rows].
      seed: of the bootstrap and of the rows kept away.

    Raises:
      UserError: for data that are missing, not positive, of different lengths, or fewer than the constants, and for
        options that are none.
    """
    _check_options(delta, polished, samples, level, seed)
    fixed = dict(fixed or {})
    for name in fixed:
        check_choice(f"fixed constant of {law.name}", name, list(law.published()))
    rows = _make_rows(law, data)
    random = np.random.default_rng(seed)
    is_kept = _held_out_mask(held_out, len(rows), random)
    fitted, kept = rows.take(~is_kept), rows.take(is_kept)
    space = _make_space(law, fixed)
    if fitted.distinct < len(space.names):
        what = f"{len(fitted)} runs" + (f", {fitted.distinct} of them different," * (fitted.distinct < len(fitted)))
        raise UserError(f"{what} cannot fix the {len(space.names)} constants of {law.name}")
    if fitted.distinct == len(space.names):
        # They go through every run, however noisy it is: every draw would come to the same constants.
        samples = 0
    vectors = [space.to_vector(start) for start in (law.starts() if starts is None else starts)]
    if not vectors:
        raise UserError(f"a fit of {law.name} needs at least one start")
    best, objective = _minimum(space, fitted, vectors, delta, polished)
    drawn = [fitted.take(random.integers(len(fitted), size=len(fitted))) for _ in range(samples)]
    ends = [space.to_law(_minimum(space, draw, [best], delta, 1)[0]) for draw in drawn]
    found = {name: np.array([getattr(end, name) for end in ends]) for name in space.names}
    tails = (50 * (1 - level), 50 * (1 + level))
    result = space.to_law(best)
    intervals = {name: np.percentile(x, tails) for name, x in found.items()} if samples else {}
    bounds = {name: _bound(space, best, name, getattr(result, name), fitted) for name in space.names}
    return Fit(
        law=result,
        intervals={name: _to_bounds(space, best, name, ends, fitted) for name, ends in intervals.items()},
        level=level,
        objective=objective,
        rows=len(fitted),
        domain=Domain(**{name: (float(x.min()), float(x.max())) for name, x in fitted.quantities.items()}),
        held_out_error=float(np.sqrt(np.mean(_residuals(result, kept) ** 2))) if len(kept) else None,
        samples=found if samples else {},
        at_bound={name: bound for name, bound in bounds.items() if bound is not None},
    )


def fit_power_law(x: Any, y: Any) -> tuple[float, float]:
    """(coefficient, exponent) of y = coefficient·x^exponent by least squares of the logarithms."""
    exponent, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return math.exp(intercept), float(exponent)


def objective(law: Law, data: Mapping[str, Any], delta: float | None = HUBER_DELTA) -> float:
    """The sum of Huber losses (or of halved squares) that a law leaves on data."""
    return _cost(_residuals(law, _make_rows(type(law), data)), delta)


def _check_options(delta: float | None, polished: int, samples: int, level: float, seed: int) -> None:
    for name, is_right, value, expected in (
        ("delta", delta is None or delta > 0, delta, "a positive number, or None"),
        ("polished", polished >= 1, polished, "at least 1"),
        ("samples", samples >= 0, samples, "0 or more"),
        ("level", 0 < level < 1, level, "a share between 0 and 1"),
        ("seed", seed >= 0, seed, "0 or more"),
    ):
        if not is_right:
            raise UserError(f"{name} of a fit is {value}; expected {expected}")


def _make_rows(law: type[Law], data: Mapping[str, Any]) -> _Rows:
    missing = [name for name in (*law.required, law.predicts) if name not in data]
    if missing:
        raise UserError(f"data to fit {law.name} lack {', '.join(missing)}")
    names = [name for name in law.quantities if name in data]
    try:
        arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(data[n], float)) for n in (*names, law.predicts)))
    except ValueError as error:
        raise UserError(f"data to fit {law.name} differ in length: {error}") from None
    for name, array in zip((*names, law.predicts), arrays, strict=True):
        may_be_zero = name in law.may_be_zero or (name == law.predicts and law.residuals == "linear")
        if not np.all(np.isfinite(array)) or (not may_be_zero and np.any(array <= 0)):
            raise UserError(f"data to fit {law.name}: {name} holds what is no positive number")
    return _Rows(dict(zip(names, arrays[:-1], strict=True)), arrays[-1])


def _held_out_mask(held_out: float | np.ndarray, rows: int, random: np.random.Generator) -> np.ndarray:
    if np.ndim(held_out):
        mask = np.asarray(held_out, dtype=bool)
        if mask.shape != (rows,):
            raise UserError(f"held_out is a mask of {len(mask)} for {rows} runs")
        return mask
    if not 0 <= held_out < 1:
        raise UserError(f"held_out is {held_out}; expected a share from 0 to below 1")
    mask = np.zeros(rows, dtype=bool)
    mask[random.permutation(rows)[: round(float(held_out) * rows)]] = True
    return mask


def _make_space(law: type[Law], fixed: Mapping[str, float]) -> _Space:
    fields = {f.name: f for f in dataclasses.fields(law) if "start" in f.metadata and f.name not in fixed}
    signed = np.array([f.metadata["signed"] for f in fields.values()], dtype=bool)
    return _Space(law, tuple(fields), signed, fixed)


def _residuals(law: Law, rows: _Rows) -> np.ndarray:
    predicted = np.broadcast_to(law._value(**rows.quantities), rows.observed.shape)
    if law.residuals == "linear":
        return predicted - rows.observed
    return np.log(predicted) - np.log(rows.observed)


def _cost(residuals: np.ndarray, delta: float | None) -> float:
    if delta is None:
        return float(0.5 * np.sum(residuals**2))
    size = np.abs(residuals)
    return float(np.sum(np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))))


def _bound(space: _Space, best: np.ndarray, name: str, value: float, rows: _Rows) -> float | None:
    """The end of its range, 0 or infinity, that the data cannot tell a value of one constant from, if there is one.

    None too for a constant that the data do not depend on at all.
    """
    index = space.names.index(name)
    if space.signed[index]:
        return None

    def predicted(log: float) -> np.ndarray:
        vector = best.copy()
        vector[index] = log
        return space.residuals(vector, rows)

    here = predicted(math.log(value) if value > 0 else -_LARGEST_LOG)
    noise = float(np.sqrt(np.mean(space.residuals(best, rows) ** 2)))
    is_untold = [
        bool(np.max(np.abs(predicted(log) - here)) <= _UNTOLD * noise) for log in (-_LARGEST_LOG, _LARGEST_LOG)
    ]
    return {(True, False): 0.0, (False, True): math.inf}.get(tuple(is_untold))


def _to_bounds(space: _Space, best: np.ndarray, name: str, ends: np.ndarray, rows: _Rows) -> tuple[float, float]:
    """The ends of an interval, of which those that the data cannot tell from a bound are at it."""
    bounds = [_bound(space, best, name, float(end), rows) for end in ends]
    low, high = (float(end) if bound is None else bound for end, bound in zip(ends, bounds, strict=True))
    return low, high


def _minimum(
    space: _Space, rows: _Rows, starts: list[np.ndarray], delta: float | None, polished: int
) -> tuple[np.ndarray, float]:
    """The lowest minimum that the most promising starts lead to."""

    def residuals(vector: np.ndarray) -> np.ndarray:
        return space.residuals(vector, rows)

    nearest = sorted(starts, key=lambda start: _cost(residuals(start), delta))[:polished]
    ends = [_descend(residuals, start, delta) for start in nearest]
    return min(ends, key=lambda end: end[1])


def _descend(
    residuals: Callable[[np.ndarray], np.ndarray], start: np.ndarray, delta: float | None
) -> tuple[np.ndarray, float]:
    # A Huber loss is nearly flat far from the data: squares lead there first.
    near = optimize.least_squares(residuals, start, x_scale="jac", max_nfev=200).x
    shape = {} if delta is None else {"loss": "huber", "f_scale": delta}
    end = optimize.least_squares(residuals, near, jac="3-point", x_scale="jac", **_TIGHT, **shape)
    return end.x, _cost(end.fun, delta)
