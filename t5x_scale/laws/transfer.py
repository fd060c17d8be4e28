"""Downstream transfer (Isik et al. 2024, 2402.04177): translation after fine-tuning, in tokens of pre-training.

Both laws hold where pre-training data are aligned with the task. Where they are not, BLEU may fall with more of them
while cross entropy keeps falling: cross entropy alone does not say that pre-training helps (`is_monotone`). T5 770M and
3B, WMT to German, French and Romanian; the constants differ by task and are fitted.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws.constants import unpublished
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Law, Values

_SOURCE = "Isik et al. 2024 (2402.04177)"


@dataclasses.dataclass(frozen=True)
class TransferBleu(Law):
    """BLEU = (ln(A·D^alpha))^beta, D `tokens` of pre-training."""

    name = "transfer_bleu"
    source = _SOURCE
    predicts = "bleu"
    unit = "BLEU points"
    domain = Domain(params=(770e6, 3e9))

    # ln A, which may be negative.
    log_A: float = unpublished(0.5, signed=True)
    alpha: float = unpublished(0.3)
    beta: float = unpublished(1.5)

    def _value(self, *, tokens: Values) -> Values:
        """Not a number where A·D^alpha is below 1: the law begins beyond."""
        log = self.log_A + self.alpha * np.log(tokens)
        return np.where(log > 0, np.maximum(log, 1e-300) ** self.beta, np.nan)


@dataclasses.dataclass(frozen=True)
class TransferLoss(Law):
    """L = E + A/D^alpha: cross entropy of the task after fine-tuning."""

    name = "transfer_loss"
    source = _SOURCE
    unit = "nats a token of the task"
    domain = TransferBleu.domain

    E: float = unpublished(0.8)
    A: float = unpublished(100.0)
    alpha: float = unpublished(0.3)

    def _value(self, *, tokens: Values) -> Values:
        return self.E + self.A / tokens**self.alpha


def is_monotone(tokens: np.ndarray, scores: np.ndarray, tolerance: float = 0.0) -> bool:
    """Whether scores never fall by more than `tolerance` as tokens grow; where they do, the data are not aligned."""
    tokens, scores = np.asarray(tokens, float), np.asarray(scores, float)
    if tokens.shape != scores.shape or tokens.ndim != 1:
        raise UserError(f"{tokens.shape} tokens and {scores.shape} scores; expected one score for each")
    ordered = scores[np.argsort(tokens)]
    return bool(np.all(ordered >= np.maximum.accumulate(ordered) - tolerance))


LAWS = (TransferBleu(), TransferLoss())
