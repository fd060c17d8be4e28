"""Replay in continued pre-training (Ibrahim et al. 2024, 2403.08763): some of the old data among the new.

The paper has rows and no law: a few per cent of replay remove most of the forgetting and cost little. The rows stand
here, by transcription (tables 2, 4 and 12); the laws through them are ours, meant to interpolate between their shares
of replay and nothing else:

    old data, L(r) = A/(r + epsilon)^gamma, the term of D-CPT in the share of a text;
    new data, L(r) = E + cost·r^kappa.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.laws.bounded import SHARE, BoundedLaw
from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Values

_SOURCE = "form and constants ours, fitted to rows of Ibrahim et al. 2024 (2403.08763)"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Final losses, in nats a token, of continuing a model on new data with shares of the old among them.

    Attributes:
      params, old_tokens, new_tokens: of the model, before and while it was continued.
      rows: (share of replay, loss on old data, loss on new data).
      base_old: loss on old data before.
      union: (old, new) losses of a model trained on both from the start.
    """

    params: float
    old_tokens: float
    new_tokens: float
    rows: tuple[tuple[float, float, float], ...]
    base_old: float
    union: tuple[float, float]


STRONG_SHIFT = Scenario(  # The Pile, then German.
    params=405e6,
    old_tokens=300e9,
    new_tokens=200e9,
    rows=(
        (0.0, 3.56, 1.11),
        (0.01, 2.83, 1.12),
        (0.05, 2.57, 1.12),
        (0.10, 2.46, 1.13),
        (0.25, 2.33, 1.16),
        (0.50, 2.24, 1.22),
    ),
    base_old=2.17,
    union=(2.26, 1.25),
)

WEAK_SHIFT = Scenario(  # The Pile, then SlimPajama.
    params=405e6,
    old_tokens=300e9,
    new_tokens=300e9,
    rows=(
        (0.0, 2.44, 2.50),
        (0.005, 2.27, 2.50),
        (0.01, 2.26, 2.50),
        (0.05, 2.23, 2.51),
        (0.10, 2.21, 2.51),
        (0.50, 2.16, 2.54),
    ),
    base_old=2.17,
    union=(2.17, 2.53),
)

WEAK_SHIFT_10B = Scenario(
    params=10e9,
    old_tokens=300e9,
    new_tokens=300e9,
    rows=((0.0, 1.98, 2.00), (0.05, 1.79, 2.00)),
    base_old=1.75,
    union=(1.72, 2.02),
)


@dataclasses.dataclass(frozen=True)
class OldLoss(BoundedLaw):
    """L(r) = A/(r + epsilon)^gamma on old data after a strong shift, with r the share of replay (`ratio`)."""

    name = "replay_old_strong"
    source = _SOURCE
    unit = "nats a token of the Pile, GPT-NeoX tokenizer"
    domain = Domain(ratio=(0.0, 0.5), params=(405e6, 405e6))
    form_confidence = "low"
    may_be_zero = frozenset({"ratio"})
    bounds = Domain(ratio=SHARE)

    A: float = constant(2.1450, confidence="recomputed")
    epsilon: float = constant(2.251e-4, confidence="recomputed")
    gamma: float = constant(0.06032, confidence="recomputed")

    def _value(self, *, ratio: Values) -> Values:
        return self.A / (ratio + self.epsilon) ** self.gamma


@dataclasses.dataclass(frozen=True)
class OldLossWeak(OldLoss):
    """The same after a weak shift."""

    name = "replay_old_weak"

    A: float = constant(2.1515, confidence="recomputed")
    epsilon: float = constant(7.482e-6, confidence="recomputed")
    gamma: float = constant(0.01066, confidence="recomputed")


@dataclasses.dataclass(frozen=True)
class NewLoss(BoundedLaw):
    """L(r) = E + cost·r^kappa on new data after a strong shift: what replay takes from them."""

    name = "replay_new_strong"
    source = _SOURCE
    unit = "nats a token of the new data, GPT-NeoX tokenizer"
    domain = Domain(ratio=(0.0, 0.5), params=(405e6, 405e6))
    form_confidence = "low"
    may_be_zero = frozenset({"ratio"})
    bounds = Domain(ratio=SHARE)

    E: float = constant(1.1141, confidence="recomputed")
    cost: float = constant(0.2411, confidence="recomputed")
    kappa: float = constant(1.1889, confidence="recomputed")

    def _value(self, *, ratio: Values) -> Values:
        return self.E + self.cost * ratio**self.kappa


@dataclasses.dataclass(frozen=True)
class NewLossWeak(NewLoss):
    """The same after a weak shift."""

    name = "replay_new_weak"

    E: float = constant(2.4992, confidence="recomputed")
    cost: float = constant(0.0674, confidence="recomputed")
    kappa: float = constant(0.7285, confidence="recomputed")


@dataclasses.dataclass(frozen=True)
class Shift:
    """How far the new data are from the old: the rows of one, and the laws through them."""

    scenario: Scenario
    old: OldLoss
    new: NewLoss

    def forgetting(self, ratio: Values) -> Values:
        """Rise of the loss on old data, in nats; negative where replay leaves it better than it was."""
        return self.old.loss(ratio=ratio) - self.scenario.base_old

    def ratio_for(self, forgetting: float) -> float:
        """The least replay that keeps forgetting at or below so many nats; 0 where none is needed."""
        law = self.old
        return max((law.A / (self.scenario.base_old + forgetting)) ** (1 / law.gamma) - law.epsilon, 0.0)

    def cost(self, ratio: Values) -> Values:
        """Rise of the loss on new data over that without replay, in nats."""
        return self.new.loss(ratio=ratio) - self.new.loss(ratio=0.0)


SHIFTS = {
    "strong": Shift(STRONG_SHIFT, OldLoss(), NewLoss()),
    "weak": Shift(WEAK_SHIFT, OldLossWeak(), NewLossWeak()),
}

LAWS = (OldLoss(), OldLossWeak(), NewLoss(), NewLossWeak())
