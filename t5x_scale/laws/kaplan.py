"""Kaplan et al. 2020 (2001.08361): the first laws, of loss in parameters, data, compute and steps.

Parameters N and compute count no embeddings; losses are of WebText2 with 1024 tokens of context, early-stopped; compute
C_min is what a batch far below the critical one would have taken, in PF-days (given here as `flops`, converted inside).
Their allocation, N ∝ C^0.73, was not borne out: small models lacked the head's FLOPs, warm-ups and schedules were of a
fixed length (see `porian`). It stands here to be compared with, not to plan by.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import solve
from t5x_scale.laws.interface import Law, NoNumber, Optimum, Values
from t5x_scale.laws.power import OfParams, ParamsForFlops
from t5x_scale.laws.units import FLOPS_PER_PARAM_TOKEN, PF_DAY

UNIT = "nats a token of WebText2, GPT-2 tokenizer"

# Section 1: 768 to 1.5B parameters without embeddings, 22M to 23B tokens; compute is bounded by their products.
_PARAMS, _TOKENS = (768.0, 1.5e9), (22e6, 23e9)
# Of the steps of a run, fewer than a batch far below every critical one is worth.
_FEWEST = 1e-9
_FLOPS = tuple(FLOPS_PER_PARAM_TOKEN * n * d for n, d in zip(_PARAMS, _TOKENS, strict=True))


@dataclasses.dataclass(frozen=True)
class KaplanParams(Law):
    """L(N) = (N_c/N)^alpha_N, with enough data and steps (equation 1.1)."""

    name = "kaplan_params"
    source = "Kaplan et al. 2020, equation 1.1"
    unit = UNIT
    domain = Domain(params=_PARAMS)
    with_embeddings = False

    N_c: float = constant(8.8e13)
    alpha_N: float = constant(0.076)

    def _value(self, *, params: Values) -> Values:
        return (self.N_c / params) ** self.alpha_N


@dataclasses.dataclass(frozen=True)
class KaplanTokens(Law):
    """L(D) = (D_c/D)^alpha_D, for large models stopped early on so much data (equation 1.2)."""

    name = "kaplan_tokens"
    source = "Kaplan et al. 2020, equation 1.2"
    unit = UNIT
    domain = Domain(tokens=_TOKENS)

    D_c: float = constant(5.4e13)
    alpha_D: float = constant(0.095)

    def _value(self, *, tokens: Values) -> Values:
        return (self.D_c / tokens) ** self.alpha_D


@dataclasses.dataclass(frozen=True)
class KaplanCompute(Law):
    """L(C_min) = (C_c/C_min)^alpha_C, the best model for C_min at a batch far below the critical one (equation 1.3)."""

    name = "kaplan_compute"
    source = "Kaplan et al. 2020, equation 1.3"
    unit = UNIT
    domain = Domain(flops=_FLOPS)
    with_embeddings = False

    # In PF-days.
    C_c: float = constant(3.1e8)
    alpha_C: float = constant(0.050)

    def _value(self, *, flops: Values) -> Values:
        return (self.C_c * PF_DAY / flops) ** self.alpha_C


@dataclasses.dataclass(frozen=True)
class KaplanFixedBatch(KaplanCompute):
    """L(C) = (C_c/C)^alpha_C, the naive law of runs that all had the same batch."""

    name = "kaplan_fixed_batch"
    source = "Kaplan et al. 2020, section 3.3"

    C_c: float = constant(1.6e7)
    alpha_C: float = constant(0.057)


@dataclasses.dataclass(frozen=True)
class KaplanJoint(Law):
    """L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D, stopped early on D tokens of data (equation 1.5)."""

    name = "kaplan_joint"
    source = "Kaplan et al. 2020, equation 1.5, table 2"
    unit = UNIT
    domain = Domain(params=_PARAMS, tokens=_TOKENS)
    with_embeddings = False

    N_c: float = constant(6.4e13)
    D_c: float = constant(1.8e13)
    alpha_N: float = constant(0.076)
    alpha_D: float = constant(0.103)

    def _value(self, *, params: Values, tokens: Values) -> Values:
        return ((self.N_c / params) ** (self.alpha_N / self.alpha_D) + self.D_c / tokens) ** self.alpha_D


@dataclasses.dataclass(frozen=True)
class KaplanLearningCurve(Law):
    """L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S, with enough data (equation 1.6).

    `steps` are S_min, those that a batch far above the critical one would take: S / (1 + B_crit/B).
    """

    name = "kaplan_learning_curve"
    source = "Kaplan et al. 2020, equation 1.6, table 3"
    unit = UNIT
    domain = Domain(params=_PARAMS, steps=(1.0, 2.5e5))
    with_embeddings = False

    N_c: float = constant(6.5e13)
    S_c: float = constant(2.1e3)
    alpha_N: float = constant(0.077)
    alpha_S: float = constant(0.76)

    def _value(self, *, params: Values, steps: Values) -> Values:
        return (self.N_c / params) ** self.alpha_N + (self.S_c / steps) ** self.alpha_S

    def fewest_steps(self, params: float, steps: float, batch_tokens: float) -> float:
        """S_min of a run of `steps` at a batch: S = S_min·(1 + B_crit(L)/B), L the loss that it ends at (equation 5.4).

        Raises:
          UserError: what is given are no positive numbers, or no S_min leads to these steps.
        """
        critical = KaplanCriticalBatch()
        params, steps = self.checked("params", params), self.checked("steps", steps)
        batch_tokens = critical.checked("batch_tokens", batch_tokens)

        def excess(fewest: float) -> float:
            # As numpy's: of a step or less a loss may be infinite, and its critical batch is nothing.
            with np.errstate(all="ignore"):
                loss = self._value(params=np.float64(params), steps=np.float64(fewest))
                return float(fewest * (1 + critical._value(loss=loss) / batch_tokens) - steps)

        try:
            return solve(excess, steps * _FEWEST, steps)
        except NoNumber:
            raise UserError(
                f"the law {self.name} knows of no fewest steps for {steps:.4g} of {batch_tokens:.4g} tokens with "
                f"{params:.4g} parameters"
            ) from None


@dataclasses.dataclass(frozen=True)
class KaplanCriticalBatch(Law):
    """B_crit(L) = B_star/L^(1/alpha_B) tokens, whatever the size of the model (equation 1.4).

    At it training takes twice the fewest steps and twice the fewest tokens.
    """

    name = "kaplan_critical_batch"
    source = "Kaplan et al. 2020, equation 1.4"
    predicts = "batch_tokens"
    unit = "tokens"

    B_star: float = constant(2e8)
    alpha_B: float = constant(0.21)

    def _value(self, *, loss: Values) -> Values:
        return self.B_star / loss ** (1 / self.alpha_B)


@dataclasses.dataclass(frozen=True)
class KaplanAllocation(ParamsForFlops):
    """N_opt = 1.3e9·C_min^0.73, C_min in PF-days; see the module about its fate."""

    name = "kaplan_allocation"
    source = "Kaplan et al. 2020, section 6.1"
    domain = Domain(flops=_FLOPS)
    with_embeddings = False
    per = PF_DAY

    coefficient: float = constant(1.3e9)
    exponent: float = constant(0.73)

    def _optimum(self, **budget: float) -> Optimum:
        """The allocation at one of `flops` (C_min), `params` or `tokens`, its loss L(C_min) and its critical batch.

        Tokens are the fewest, C_min/(6N); trained at the critical batch it takes twice as many, and twice C_min.
        """
        best = super()._optimum(**budget)
        loss = KaplanCompute().predict(flops=best["flops"])
        batch = KaplanCriticalBatch().predict(loss=loss)
        return dataclasses.replace(best, values={**best.values, "loss": loss, "batch_tokens": batch})


@dataclasses.dataclass(frozen=True)
class KaplanDataNeed(OfParams):
    """D = 5e3·N^0.74 tokens, above which a model overfits by less than the noise between seeds (equation 4.4)."""

    name = "kaplan_data_need"
    source = "Kaplan et al. 2020, equation 4.4"
    predicts = "tokens"
    unit = "tokens"
    domain = Domain(params=_PARAMS)
    with_embeddings = False

    coefficient: float = constant(5e3)
    exponent: float = constant(0.74)


@dataclasses.dataclass(frozen=True)
class KaplanLearningRate(Law):
    """LR(N) = 0.003239 - 0.0001395·ln N, for Adam (appendix D.6); from 1.2e10 parameters on that is no rate."""

    name = "kaplan_learning_rate"
    source = "Kaplan et al. 2020, appendix D.6"
    predicts = "learning_rate"
    unit = "of Adam"
    domain = Domain(params=_PARAMS)
    with_embeddings = False

    intercept: float = constant(0.003239)
    slope: float = constant(-0.0001395, signed=True)

    def _value(self, *, params: Values) -> Values:
        rate = self.intercept + self.slope * np.log(params)
        return np.where(rate > 0, rate, np.nan)


def fewest_steps(steps: Values, batch_tokens: Values, critical_batch: Values) -> Values:
    """S_min = S/(1 + B_crit/B): the steps that an enormous batch would have taken."""
    return steps / (1 + critical_batch / batch_tokens)


def least_compute(flops: Values, batch_tokens: Values, critical_batch: Values) -> Values:
    """C_min = C/(1 + B/B_crit): the compute that a tiny batch would have taken."""
    return flops / (1 + batch_tokens / critical_batch)


def compute_exponent(alpha_S: float = 0.76, alpha_B: float = 0.21, alpha_N: float = 0.076) -> float:
    """1/(1/alpha_S + 1/alpha_B + 1/alpha_N), the exponent of L(C_min); N_opt grows as C_min^(this/alpha_N)."""
    return 1 / (1 / alpha_S + 1 / alpha_B + 1 / alpha_N)


LAWS = (
    KaplanParams(),
    KaplanTokens(),
    KaplanCompute(),
    KaplanFixedBatch(),
    KaplanJoint(),
    KaplanLearningCurve(),
    KaplanCriticalBatch(),
    KaplanAllocation(),
    KaplanDataNeed(),
    KaplanLearningRate(),
)
