"""Chinchilla: loss as a sum of what model size and data leave (Hoffmann et al. 2022, 2203.15556).

Parameters and FLOPs include embeddings, and a cosine schedule ends where the tokens do: one longer by more than a
quarter hurts.

The three approaches of the paper do not agree, and approach 3 does not agree with itself: with the constants as they
are printed, 5.76e23 FLOPs are best spent on 32B parameters and 3.0T tokens, where its text says 40B, and approach 1
67B and 1.5T. The constants in its TeX source have more digits (`chinchilla_unrounded`); the fit itself had stopped
early (see `besiroglu`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import allocate, one_budget
from t5x_scale.laws.interface import Law, Optimum, Values
from t5x_scale.laws.power import ParamsForFlops
from t5x_scale.laws.units import FLOPS_PER_PARAM_TOKEN

# The abstract: over 400 models from 70M to over 16B parameters on 5B to 500B tokens.
DOMAIN = Domain(params=(70e6, 16e9), tokens=(5e9, 500e9))

# Budgets of approach 2.
ISOFLOP_BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)


@dataclasses.dataclass(frozen=True)
class Chinchilla(Law):
    """L(N, D) = E + A/N^alpha + B/D^beta, with the constants as printed (approach 3, equation 10).

    Rounding alone moves the optimum by a factor of two: take this instance to quote the paper, not to plan.
    """

    name = "chinchilla"
    source = "Hoffmann et al. 2022, section 3.3, equation 10"
    unit = "nats a token of MassiveText, 32k SentencePiece"
    domain = DOMAIN
    with_embeddings = True

    E: float = constant(1.69)
    A: float = constant(406.4)
    B: float = constant(410.7)
    alpha: float = constant(0.34, signed=True)
    beta: float = constant(0.28, signed=True)

    def _value(self, *, params: Values, tokens: Values) -> Values:
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b): the best params grow as C^a and the best tokens as C^b."""
        total = self.alpha + self.beta
        return self.beta / total, self.alpha / total

    @property
    def G(self) -> float:
        """N_opt = G·(C/6)^a and D_opt = (C/6)^b / G (equation 4)."""
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))

    def _optimum(self, **budget: float) -> Optimum:
        """The frontier at one of `flops`, `params` (tokens for which they are best) or `tokens`."""
        name, value = one_budget(self, budget, ("flops", "params", "tokens"))
        a, b = self.exponents
        if name == "flops":
            product = value / FLOPS_PER_PARAM_TOKEN
        elif name == "params":
            product = (value / self.G) ** (1 / a)
        else:
            product = (value * self.G) ** (1 / b)
        return allocate(self, self.G * product**a, product**b / self.G, {name: value})

    @classmethod
    def starts(cls) -> Iterator[dict[str, float]]:
        """The published grid of 4500 starts (section D.2)."""
        halves = (0.0, 0.5, 1.0, 1.5, 2.0)
        logs = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
        for alpha, beta, e, a, b in itertools.product(halves, halves, (-1.0, -0.5, 0.0, 0.5, 1.0), logs, logs):
            yield {"E": math.exp(e), "A": math.exp(a), "B": math.exp(b), "alpha": alpha, "beta": beta}


@dataclasses.dataclass(frozen=True)
class ChinchillaUnrounded(Chinchilla):
    """The same with the digits of the paper's TeX source."""

    name = "chinchilla_unrounded"
    source = "Hoffmann et al. 2022, TeX source, read by Besiroglu et al. 2024"

    E: float = constant(1.6934)
    alpha: float = constant(0.3392, signed=True)
    beta: float = constant(0.2849, signed=True)


@dataclasses.dataclass(frozen=True)
class ChinchillaEnvelope(ParamsForFlops):
    """Approach 1, the minimum over training curves: N_opt = coefficient·C^exponent, D_opt = C/(6·N_opt).

    The paper prints the exponent 0.50 (0.488 to 0.502) and no coefficient; both are fitted here to the nine rows of its
    table 3, from 400M to 10T parameters. They meet its sizes within 1.3 % and its tokens within 1 %, but for the row of
    67B, whose 1.5T is rounded (6·N·D is 5 % above its FLOPs).
    """

    name = "chinchilla_envelope"
    source = "Hoffmann et al. 2022, table 3"
    domain = Domain(flops=(6 * 70e6 * 5e9, 3e21))
    with_embeddings = True

    coefficient: float = constant(0.0991589, confidence="recomputed")
    exponent: float = constant(0.4980987, confidence="recomputed", signed=True)


@dataclasses.dataclass(frozen=True)
class ChinchillaIsoflop(ChinchillaEnvelope):
    """Approach 2, valleys at fixed FLOPs: exponent 0.49 (0.462 to 0.534), through 63B at Gopher's 5.76e23 FLOPs."""

    name = "chinchilla_isoflop"
    source = "Hoffmann et al. 2022, section 3.2"

    coefficient: float = constant(63e9 / 5.76e23**0.49, confidence="medium")
    exponent: float = constant(0.49, signed=True)


LAWS = (Chinchilla(), ChinchillaUnrounded(), ChinchillaEnvelope(), ChinchillaIsoflop())
