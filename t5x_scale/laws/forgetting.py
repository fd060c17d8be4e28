"""Forgetting in fine-tuning (Kalajdzievski 2024, 2401.05605): what is lost of the base model, in size and in steps.

Forgetting is the cross entropy of the fine-tuned model against the base model's own distribution of the next token, on
general text. It and the fine-tuning loss are shifted power laws of the parameters that train (P, all LoRA matrices say)
and of the updates N, one rising as the other falls, so that forgetting is a line in the fine-tuning loss. The paper's
constants are not known to us.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.laws.constants import unpublished
from t5x_scale.laws.interface import Law, Values

_SOURCE = "Kalajdzievski 2024 (2401.05605)"


@dataclasses.dataclass(frozen=True)
class FineTuningLoss(Law):
    """L = c + ((a/P)^alpha + (b/N)^beta)^rho, with P `trainable_params` and N `steps`."""

    name = "fine_tuning_loss"
    source = _SOURCE
    unit = "nats a token of the fine-tuning data"
    form_confidence = "medium"

    c: float = unpublished(1.0)
    a: float = unpublished(1e5)
    alpha: float = unpublished(0.3)
    b: float = unpublished(50.0)
    beta: float = unpublished(0.5)
    rho: float = unpublished(1.0)

    def _value(self, *, trainable_params: Values, steps: Values) -> Values:
        return self.c + self._tail(trainable_params, steps)

    def _tail(self, trainable_params: Values, steps: Values) -> Values:
        return ((self.a / trainable_params) ** self.alpha + (self.b / steps) ** self.beta) ** self.rho


@dataclasses.dataclass(frozen=True)
class Forgetting(FineTuningLoss):
    """Forgetting = c - ((a/P)^alpha + (b/N)^beta)^rho: it rises towards c with both."""

    name = "forgetting"
    predicts = "forgetting"
    unit = "nats a token of general text, against the base model"
    residuals = "linear"

    def _value(self, *, trainable_params: Values, steps: Values) -> Values:
        return self.c - self._tail(trainable_params, steps)


@dataclasses.dataclass(frozen=True)
class ForgettingLine(Law):
    """Forgetting = intercept - slope·(fine-tuning loss): the better the fit, the more is forgotten."""

    name = "forgetting_line"
    source = _SOURCE
    predicts = "forgetting"
    unit = Forgetting.unit
    form_confidence = "medium"
    residuals = "linear"

    intercept: float = unpublished(1.0, signed=True)
    slope: float = unpublished(1.0, signed=True)

    def _value(self, *, fine_tuning_loss: Values) -> Values:
        return self.intercept - self.slope * fine_tuning_loss

    def loss_for(self, forgetting: float) -> float:
        """The fine-tuning loss at which so much is forgotten: the best that can be had for it."""
        return (self.intercept - forgetting) / self.slope


LAWS = (FineTuningLoss(), Forgetting(), ForgettingLine())
