"""Repeated data (Muennighoff et al. 2023, 2305.16264): what a second epoch is worth, and what more parameters are.

Repeating up to four times is nearly as good as new data; beyond forty it adds next to nothing.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import allocate, checked_budget, minimise
from t5x_scale.laws.interface import Law, Optimum, Values
from t5x_scale.laws.units import FLOPS_PER_PARAM_TOKEN


@dataclasses.dataclass(frozen=True)
class DataConstrained(Law):
    """L = E + A/N'^alpha + B/D'^alpha, with what repeated tokens and excess parameters are worth:

    D' = U_D + U_D·R_D*·(1 - exp(-R_D/R_D*)), U_D = min(D, unique tokens), R_D = D/U_D - 1 repetitions;
    N' likewise from U_N, the parameters that are best for U_D tokens, as Chinchilla counts them. Without repetition it
    is Chinchilla's form for models up to that size; larger ones are worth less than they count.
    """

    name = "data_constrained"
    source = "Muennighoff et al. 2023, C4; constants of the notebooks of datablations"
    unit = "nats a token of C4, GPT-2 tokenizer"
    # Its 182 runs: up to 9B parameters and 900B tokens.
    # Beyond some forty epochs another adds next to nothing, and nothing in the form says that it may hurt.
    domain = Domain(params=(0.0, 9e9), tokens=(0.0, 9e11), epochs=(1.0, 40.0))
    with_embeddings = True

    E: float = constant(math.exp(0.6254804))
    A: float = constant(math.exp(6.255414))
    B: float = constant(math.exp(7.3049974))
    # Of parameters and of data, tied.
    alpha: float = constant(0.3526596)
    R_D: float = constant(15.387756)
    R_N: float = constant(5.309743)

    def _value(self, *, params: Values, tokens: Values, unique_tokens: Values = math.inf) -> Values:
        useful_params = self.effective_params(params, np.minimum(tokens, unique_tokens))
        useful_tokens = self.effective_tokens(tokens, unique_tokens)
        return self.E + self.A / useful_params**self.alpha + self.B / useful_tokens**self.alpha

    @property
    def params_per_token(self) -> float:
        """U_N/U_D, constant because the exponents are tied: one parameter for 19.6 tokens."""
        return (self.A / self.B) ** (1 / self.alpha)

    def effective_tokens(self, tokens: Values, unique_tokens: Values) -> Values:
        """D', the new tokens that `tokens` out of `unique_tokens` are worth."""
        return _saturate(tokens, np.minimum(tokens, unique_tokens), self.R_D)

    def effective_params(self, params: Values, unique_tokens: Values) -> Values:
        """N', what `params` are worth on `unique_tokens`."""
        return _saturate(params, np.minimum(params, self.params_per_token * unique_tokens), self.R_N)

    def outside(self, **quantities: Any) -> list[str]:
        """Also says how often data are repeated, where that is beyond the domain."""
        tokens, unique = quantities.get("tokens"), quantities.get("unique_tokens")
        if tokens is not None and unique is not None:
            quantities["epochs"] = np.maximum(np.divide(tokens, unique), 1.0)
        return super().outside(**quantities)

    def _optimum(self, **budget: float) -> Optimum:
        """The best params, tokens and epochs for `flops`, and `unique_tokens` where those are limited."""
        given = checked_budget(self, budget, required=("flops",), optional=("unique_tokens",))
        product = given["flops"] / FLOPS_PER_PARAM_TOKEN
        unique = given.get("unique_tokens", math.inf)
        params = minimise(lambda n: self._value(params=n, tokens=product / n, unique_tokens=unique), 1.0, product)
        tokens = product / params
        return allocate(self, params, tokens, {**given, "epochs": max(tokens / unique, 1.0)})


def _saturate(amount: Values, unique: Values, half_life: float) -> Values:
    return unique * (1 + half_life * -np.expm1(-(amount / unique - 1) / half_life))


LAWS = (DataConstrained(),)
