"""Constrained optima: the best size and number of tokens for a budget, and what a law needs to reach a value.

Every search first looks at a grid in the logarithm of the quantity, in one vectorised evaluation, and then lets scipy
finish between the neighbours of the best point: laws need not have a single valley.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws.interface import Law, NoNumber, Optimum
from t5x_scale.laws.units import FLOPS_PER_PARAM_TOKEN

_GRID = 400


def minimise(function: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> float:
    """Where a vectorised function of a positive number is lowest between two ends.

    Raises:
      NoNumber: if nothing lies between them.
    """
    from scipy import optimize

    _check_ends(low, high)
    grid = np.linspace(np.log(low), np.log(high), _GRID)
    values = np.asarray(function(np.exp(grid)), dtype=float)
    best = int(np.nanargmin(values))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)])
    found = optimize.minimize_scalar(
        lambda x: float(function(np.exp(x))), bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    return float(np.exp(found.x if found.fun <= values[best] else grid[best]))


def solve(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of a function of a positive number that changes its sign between two ends.

    Raises:
      NoNumber: if it does not change its sign.
    """
    from scipy import optimize

    _check_ends(low, high)
    start, end = function(low), function(high)
    if not np.isfinite([start, end]).all() or np.sign(start) * np.sign(end) > 0:
        raise NoNumber(f"nothing between {low:.3g} and {high:.3g} reaches what was asked for")
    first, last = float(np.log(low)), float(np.log(high))

    def number(x: float) -> float:
        # The exponential of a logarithm is not quite the number, and the sign at an end may hang on that.
        return low if x == first else high if x == last else float(np.exp(x))

    try:
        return number(optimize.brentq(lambda x: function(number(x)), first, last, xtol=1e-13))
    except ValueError as error:
        raise NoNumber(f"between {low:.3g} and {high:.3g} there is what is no number") from error


def _check_ends(low: float, high: float) -> None:
    if not 0 < low < high < np.inf:
        raise NoNumber(f"nothing lies between {low:g} and {high:g}")


def compute_optimum(law: Law, flops: float, fixed: Mapping[str, float] | None = None) -> tuple[float, float]:
    """(params, tokens) with the lowest loss where 6·params·tokens = `flops`; `fixed` are the law's other quantities."""
    fixed = dict(fixed or {})
    product = flops / FLOPS_PER_PARAM_TOKEN

    def loss(params: np.ndarray) -> np.ndarray:
        return law.predict(params=params, tokens=product / params, **fixed)

    params = minimise(loss, 1.0, product)
    return params, product / params


def quantity_for(law: Law, name: str, target: float, low: float, high: float, **fixed: float) -> float:
    """The value of one quantity, between two ends, at which a law predicts `target`.

    Raises:
      UserError: if the law does not reach it in between.
    """
    try:
        return solve(lambda x: float(law.predict(**{name: x}, **fixed)) - target, low, high)
    except UserError:
        reached = sorted(float(law.predict(**{name: x}, **fixed)) for x in (low, high))
        raise UserError(
            f"the law {law.name} predicts {law.predicts} from {reached[0]:.4g} to {reached[1]:.4g} for {name} from "
            f"{low:.3g} to {high:.3g}, and not {target:.4g}"
        ) from None


def one_budget(law: Law, budget: dict[str, float], names: tuple[str, ...]) -> tuple[str, float]:
    """The one quantity that an optimum is asked for at, checked.

    Raises:
      UserError: for none, more than one, another one, or what is no positive number.
    """
    given = {name: value for name, value in budget.items() if value is not None}
    if len(given) != 1 or not given.keys() <= set(names):
        raise UserError(f"the optimum of {law.name} is asked for at one of {', '.join(names)}; got {sorted(given)}")
    ((name, value),) = given.items()
    return name, law.checked(name, value)


def allocate(law: Law, params: float, tokens: float, given: Mapping[str, float] | None = None) -> Optimum:
    """An `Optimum` at params and tokens, with what the law predicts there; what is `given` stands in it as it is."""
    values = {"params": params, "tokens": tokens, "flops": FLOPS_PER_PARAM_TOKEN * params * tokens, **(given or {})}
    known = {name: values[name] for name in law.quantities if name in values}
    return Optimum({**values, law.predicts: law.predict(**known)}, law.name, tuple(law.outside(**values)))


def checked_budget(
    law: Law, budget: Mapping[str, float], required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, float]:
    """The quantities that an optimum is asked for at, without those that are None, checked.

    Raises:
      UserError: for a missing or another one, or what is no positive number.
    """
    given = {name: value for name, value in budget.items() if value is not None}
    if not set(required) <= given.keys() <= {*required, *optional}:
        may_be = f", and may be given {', '.join(optional)}" if optional else ""
        raise UserError(f"the optimum of {law.name} needs {', '.join(required)}{may_be}; got {sorted(given)}")
    return {name: law.checked(name, value) for name, value in given.items()}
