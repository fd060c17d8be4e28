"""Upcycling (Liew et al. 2025, 2502.03009): a dense model taken on as eight experts, two of them for a token.

Three laws share E: the dense model, the mixture from scratch, and the upcycled one. `params` are those of the dense
parent, `dense_tokens` what it was trained on, `tokens` what follows. The exponent of `tokens` shrinks as dense_tokens
grow: upcycling starts better and learns more slowly, so below `break_even_tokens` it beats the mixture from scratch,
and beyond it does not. Logarithms are natural: base 10 puts the upcycled 1B model of the paper at 1.87 instead of 2.14.
Which of the constants belong to data and which to size is a reading of the header of table 2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import solve
from t5x_scale.laws.interface import Law, Values

_SOURCE = "Liew et al. 2025 (2502.03009), table 2"
_UNIT = "nats a token of SlimPajama"
_READING = "medium"
_DOMAIN = Domain(params=(0.0, 1e9), tokens=(0.0, 368e9), dense_tokens=(0.0, 368e9))

EXPERTS, EXPERTS_PER_TOKEN = 8, 2


@dataclasses.dataclass(frozen=True)
class ParentDense(Law):
    """L = A/D^alpha + B/N^beta + E of dense models."""

    name = "upcycling_dense"
    source = _SOURCE
    unit = _UNIT
    domain = _DOMAIN
    form_confidence = _READING

    A: float = constant(8.83)
    alpha: float = constant(0.088)
    B: float = constant(12.3)
    beta: float = constant(0.116)
    E: float = constant(0.165)

    def _value(self, *, params: Values, tokens: Values) -> Values:
        return self.A / tokens**self.alpha + self.B / params**self.beta + self.E


@dataclasses.dataclass(frozen=True)
class MoeFromScratch(ParentDense):
    """The same form for eight experts from scratch, the size given by their dense parent."""

    name = "upcycling_scratch"

    A: float = constant(32.0)
    alpha: float = constant(0.161)
    B: float = constant(7.05)
    beta: float = constant(0.080)


@dataclasses.dataclass(frozen=True)
class Upcycled(Law):
    """L = A·D1^-alpha_1·D2^(-alpha_2 + alpha_3·ln D1) + B/N^beta + E, with D1 dense_tokens and D2 tokens."""

    name = "upcycling"
    source = _SOURCE
    unit = _UNIT
    domain = _DOMAIN
    form_confidence = _READING

    A: float = constant(16.3)
    alpha_1: float = constant(0.043, signed=True)
    alpha_2: float = constant(0.085, signed=True)
    alpha_3: float = constant(7.98e-4, signed=True)
    B: float = constant(8.53)
    beta: float = constant(0.112)
    E: float = constant(0.165)

    def _value(self, *, params: Values, dense_tokens: Values, tokens: Values) -> Values:
        data = self.A / dense_tokens**self.alpha_1 / tokens ** self.exponent(dense_tokens)
        return data + self.B / params**self.beta + self.E

    def exponent(self, dense_tokens: Values) -> Values:
        """With which loss falls in the tokens after upcycling."""
        return self.alpha_2 - self.alpha_3 * np.log(dense_tokens)

    def break_even_tokens(self, params: float, dense_tokens: float, scratch: Law | None = None) -> float:
        """Tokens after upcycling beyond which a mixture trained on them from scratch is better.

        0 where it is better from the first token on (1e6), infinite where it is not within 1e18. Far beyond any run
        the laws cross once more, since they differ in what size leaves; that is no promise.
        """
        scratch = scratch or MoeFromScratch()
        return crossing(
            lambda tokens: (
                scratch.loss(params=params, tokens=tokens)
                - self.loss(params=params, dense_tokens=dense_tokens, tokens=tokens)
            )
        )

    def dense_break_even_tokens(
        self, params: float, dense_tokens: float, flops_ratio: float = 1.0, dense: Law | None = None
    ) -> float:
        """Tokens after upcycling from which it beats the dense parent, continued with as many FLOPs.

        Args:
          flops_ratio: FLOPs a token of the mixture over those of the parent; with 1 tokens are compared.
        """
        dense = dense or ParentDense()

        def gain(tokens: Values) -> Values:
            continued = dense.loss(params=params, tokens=dense_tokens + flops_ratio * tokens)
            return self.loss(params=params, dense_tokens=dense_tokens, tokens=tokens) - continued

        return crossing(gain)


def crossing(gain: Callable[[Values], Values], low: float = 1e6, high: float = 1e18) -> float:
    """Where a gain that begins positive first ends; 0 and infinity for one that never or always is positive."""
    grid = np.geomspace(low, high, 500)
    ended = np.flatnonzero(gain(grid) <= 0)
    if len(ended) == 0:
        return math.inf
    first = int(ended[0])
    return 0.0 if first == 0 else solve(lambda tokens: float(gain(tokens)), grid[first - 1], grid[first])


LAWS = (ParentDense(), MoeFromScratch(), Upcycled())
