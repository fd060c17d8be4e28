"""Laws of one quantity, coefficient·quantity^exponent, and the allocations of compute that have this form."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from t5x_scale.laws.frontier import allocate, one_budget
from t5x_scale.laws.interface import Law, Optimum, Values
from t5x_scale.laws.units import FLOPS_PER_PARAM_TOKEN


@dataclasses.dataclass(frozen=True)
class PowerLaw(Law):
    """coefficient·(quantity/per)^exponent; a subclass names the quantity."""

    per: ClassVar[float] = 1.0

    coefficient: float
    exponent: float

    def _power(self, quantity: Values) -> Values:
        return self.coefficient * (quantity / self.per) ** self.exponent

    def _inverse(self, value: Values) -> Values:
        return self.per * (value / self.coefficient) ** (1 / self.exponent)


@dataclasses.dataclass(frozen=True)
class OfFlops(PowerLaw):
    """coefficient·(flops/per)^exponent."""

    def _value(self, *, flops: Values) -> Values:
        return self._power(flops)


@dataclasses.dataclass(frozen=True)
class OfParams(PowerLaw):
    """coefficient·(params/per)^exponent."""

    def _value(self, *, params: Values) -> Values:
        return self._power(params)


@dataclasses.dataclass(frozen=True)
class OfTokens(PowerLaw):
    """coefficient·(tokens/per)^exponent."""

    def _value(self, *, tokens: Values) -> Values:
        return self._power(tokens)


@dataclasses.dataclass(frozen=True)
class ParamsForFlops(OfFlops):
    """The best number of parameters for a budget; tokens are what 6·N·D = C leaves."""

    predicts = "params"
    unit = "parameters"

    def _optimum(self, **budget: float) -> Optimum:
        """The allocation at one of `flops`, `params` (the budget at which they are best) or `tokens`."""
        name, value = one_budget(self, budget, ("flops", "params", "tokens"))
        flops = value
        if name == "params":
            flops = self._inverse(value)
        elif name == "tokens":
            # 6·D·coefficient = C^(1 - exponent)·per^exponent
            base = value * FLOPS_PER_PARAM_TOKEN * self.coefficient / self.per
            flops = self.per * base ** (1 / (1 - self.exponent))
        params = self.predict(flops=flops)
        return allocate(self, params, flops / (FLOPS_PER_PARAM_TOKEN * params), {name: value})
