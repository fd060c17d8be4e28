"""From runs to the best size at each budget, without a law of loss: valleys at fixed FLOPs, and the envelope of curves.

Approach 2 and approach 1 of Hoffmann et al. 2022 (2203.15556, sections 3.2 and 3.1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws.fitting import fit_power_law

# A parabola through three points leaves nothing to judge it by; fewer do not fix it.
_LEAST_RUNS = 3


@dataclasses.dataclass(frozen=True)
class Valley:
    """The valley of losses over the logarithm of size at one budget.

    Attributes:
      flops: the budget.
      params: size at the bottom.
      loss: there.
      curvature: second derivative by ln(params).
      is_inside: whether the bottom lies between the smallest and the largest run; else it is extrapolated.
    """

    flops: float
    params: float
    loss: float
    curvature: float
    is_inside: bool


@dataclasses.dataclass(frozen=True)
class Frontier:
    """N_opt = coefficient·C^exponent through valleys or an envelope, with an interval of the exponent."""

    coefficient: float
    exponent: float
    interval: tuple[float, float] | None = None

    def params(self, flops: float) -> float:
        return self.coefficient * flops**self.exponent


def fit_valley(flops: float, params: Any, loss: Any) -> Valley:
    """A parabola of `loss` over ln(`params`), [runs] each, by least squares.

    Raises:
      UserError: for fewer than three sizes, or losses that have a hill and no valley.
    """
    x, y = np.log(np.asarray(params, dtype=float)), np.asarray(loss, dtype=float)
    if len(np.unique(x)) < _LEAST_RUNS:
        raise UserError(f"a valley at {flops:.3g} FLOPs needs at least {_LEAST_RUNS} sizes, not {len(np.unique(x))}")
    middle = x.mean()
    curve, slope, base = np.polyfit(x - middle, y, 2)
    if curve <= 0:
        raise UserError(f"the losses at {flops:.3g} FLOPs have no valley over the sizes that were run")
    bottom = -slope / (2 * curve)
    return Valley(
        flops=flops,
        params=float(np.exp(middle + bottom)),
        loss=float(base - slope**2 / (4 * curve)),
        curvature=float(2 * curve),
        is_inside=bool(x.min() <= middle + bottom <= x.max()),
    )


def fit_valleys(flops: Any, params: Any, loss: Any) -> list[Valley]:
    """One valley for each different budget among runs, [runs] each; budgets are rounded to one per cent."""
    flops, params, loss = (np.asarray(values, dtype=float) for values in (flops, params, loss))
    budgets = np.round(np.log(flops) / np.log(1.01))
    groups = [budgets == budget for budget in np.unique(budgets)]
    return [fit_valley(float(np.exp(np.mean(np.log(flops[g])))), params[g], loss[g]) for g in groups]


def fit_frontier(flops: Any, params: Any, *, samples: int = 0, level: float = 0.9, seed: int = 0) -> Frontier:
    """The power law through best sizes, with the interval of its exponent by bootstrap over budgets."""
    flops, params = np.asarray(flops, dtype=float), np.asarray(params, dtype=float)
    if len(np.unique(flops)) < 2:
        raise UserError("a power law over budgets needs at least two of them")
    random = np.random.default_rng(seed)
    exponents = []
    while len(exponents) < samples:
        index = random.integers(len(flops), size=len(flops))
        if len(np.unique(flops[index])) > 1:
            exponents.append(fit_power_law(flops[index], params[index])[1])
    tails = (50 * (1 - level), 50 * (1 + level))
    interval = tuple(map(float, np.percentile(exponents, tails))) if samples else None
    return Frontier(*fit_power_law(flops, params), interval)


def frontier_of_valleys(valleys: Sequence[Valley], **options: Any) -> Frontier:
    """The frontier through those valleys whose bottom lies inside; options as in `fit_frontier`."""
    inside = [valley for valley in valleys if valley.is_inside]
    if len(inside) < 2:
        raise UserError(f"{len(inside)} of {len(valleys)} valleys have their bottom inside the sizes run; it takes two")
    return fit_frontier([v.flops for v in inside], [v.params for v in inside], **options)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Losses of one run while it goes on: `flops` and `loss` are [points], ascending in FLOPs."""

    params: float
    flops: Any
    loss: Any


def envelope(curves: Sequence[Curve], points: int = 1500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(flops, params, loss), [points] each: which run has the lowest loss at each budget, on a logarithmic grid.

    Budgets are those that at least two runs reach; losses in between are interpolated over ln(flops).

    Raises:
      UserError: if no two runs overlap.
    """
    ends = sorted(float(np.max(curve.flops)) for curve in curves)
    starts = sorted(float(np.min(curve.flops)) for curve in curves)
    if len(curves) < 2 or starts[1] >= ends[-2]:
        raise UserError("an envelope needs at least two runs that share budgets")
    grid = np.geomspace(starts[1], ends[-2], points)
    rows = [np.interp(np.log(grid), np.log(curve.flops), curve.loss, left=np.inf, right=np.inf) for curve in curves]
    best = np.argmin(rows, axis=0)
    loss = np.min(rows, axis=0)
    reached = np.isfinite(loss)
    return grid[reached], np.array([curve.params for curve in curves])[best[reached]], loss[reached]
