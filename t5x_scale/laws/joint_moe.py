"""Joint law of mixtures of experts (Ludziejewski et al. 2025, 2502.05172): active size, tokens and experts at once.

The signs are those of the paper's table 3, and its table 4, which states the law for 1 to 32 experts, agrees: the
factor of the size term falls with experts and its exponent flattens, that of the data term rises and steepens. So for
the same compute more experts want fewer active parameters and more tokens, and experts pay the more the longer a model
is trained. Table 4 begins at an Ê(1) of 2.083 where table 3 says E_start = 2.0732, which is worth 3e-3 of its factors.
Switch layers, one expert a token; FineWeb-Edu.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_scale.laws.bounded import COUNT, BoundedLaw
from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import checked_budget
from t5x_scale.laws.interface import Optimum, Values
from t5x_scale.laws.routed import effective_experts
from t5x_scale.laws.units import FLOPS_PER_PARAM_TOKEN

_SOURCE = "Ludziejewski et al. 2025 (2502.05172)"

# Numbers of experts that the paper trained.
EXPERTS = (1, 2, 4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class JointMoe(BoundedLaw):
    """L = a·Ê^delta·N^(alpha + gamma·ln Ê) + b·Ê^omega·D^(beta + zeta·ln Ê) + c; `params` are the active ones."""

    name = "joint_moe"
    source = f"{_SOURCE}, equation 6, table 3"
    unit = "nats a token of FineWeb-Edu, GPT-2 tokenizer"
    # Over 280 models up to 5B parameters in all; appendix E lists 500M to 80B tokens.
    domain = Domain(params=(0.0, 2.7e9), tokens=(5e8, 80e9), experts=(1.0, 32.0))
    with_embeddings = True
    bounds = Domain(experts=COUNT)

    a: float = constant(35.91)
    alpha: float = constant(-0.1889, signed=True)
    delta: float = constant(-0.2285, signed=True)
    gamma: float = constant(0.0098, signed=True)
    b: float = constant(35.98)
    beta: float = constant(-0.1775, signed=True)
    omega: float = constant(0.5529, signed=True)
    zeta: float = constant(-0.0259, signed=True)
    E_start: float = constant(2.0732)
    E_max: float = constant(290.4521)
    c: float = constant(1.3637)

    def _value(self, *, params: Values, tokens: Values, experts: Values = 1.0) -> Values:
        m, mu, n, nu = self.coefficients(experts)
        return m * params**mu + n * tokens**nu + self.c

    def coefficients(self, experts: Values) -> tuple[Values, Values, Values, Values]:
        """(m, mu, n, nu): at a number of experts the law is m·N^mu + n·D^nu + c (table 4)."""
        effective = effective_experts(experts, self.E_start, self.E_max)
        log = np.log(effective)
        m, n = self.a * effective**self.delta, self.b * effective**self.omega
        return m, self.alpha + self.gamma * log, n, self.beta + self.zeta * log

    def _optimum(self, **budget: float) -> Optimum:
        """The best active params and tokens for `flops` and `experts`; of the numbers that were trained the best where
        no `experts` are given, which by this law is always the largest."""
        given = checked_budget(self, budget, ("flops",), ("experts",))
        choices = [given["experts"]] if "experts" in given else [float(number) for number in EXPERTS]
        return min((self._at(given["flops"], choice) for choice in choices), key=lambda found: found["loss"])

    def _at(self, flops: float, experts: float) -> Optimum:
        m, mu, n, nu = self.coefficients(experts)
        product = flops / FLOPS_PER_PARAM_TOKEN
        # Equation 7, with the exponents negative.
        params = (mu * m / (nu * n)) ** (-1 / (mu + nu)) * product ** (nu / (mu + nu))
        values = {"params": float(params), "tokens": float(product / params), "experts": experts}
        return Optimum(
            {"flops": flops, **values, "loss": self.predict(**values)}, self.name, tuple(self.outside(**values))
        )


@dataclasses.dataclass(frozen=True)
class MoeLearningRate(BoundedLaw):
    """Peak learning rate exp(intercept + of_params·ln N + of_experts·ln E): more experts, a lower rate."""

    name = "moe_learning_rate"
    source = f"{_SOURCE}, equation 8"
    predicts = "learning_rate"
    unit = "peak, of AdamW"
    domain = Domain(experts=(1.0, 32.0))
    with_embeddings = False
    bounds = Domain(experts=COUNT)

    intercept: float = constant(8.39, signed=True)
    of_params: float = constant(-0.81, signed=True)
    of_experts: float = constant(-0.25, signed=True)

    def _value(self, *, params: Values, experts: Values = 1.0) -> Values:
        return np.exp(self.intercept + self.of_params * np.log(params) + self.of_experts * np.log(experts))


LAWS = (JointMoe(), MoeLearningRate())
