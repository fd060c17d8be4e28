"""Data quality (Chang et al. 2024, 2410.03083): tokens count by how diverse and how synthetic they are.

Chinchilla's form with effective tokens D·Q. That Q is a product of exponentials in the two measures is our reading of
an abstract, and no constants were found: over 200 models of 25M to 1.5B parameters were fitted. Q = 1 at
`diversity` = `syntheticity` = 0; a scale of Q is part of B.
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws.constants import unpublished
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Law, Values


@dataclasses.dataclass(frozen=True)
class DataQuality(Law):
    """L = E + A/N^alpha + B/(D·Q)^beta, Q = exp(of_diversity·diversity + of_syntheticity·syntheticity)."""

    name = "data_quality"
    source = "Chang et al. 2024 (2410.03083), abstract"
    domain = Domain(params=(25e6, 1.5e9))
    form_confidence = "low"
    may_be_zero = frozenset({"diversity", "syntheticity"})

    E: float = unpublished(1.7)
    A: float = unpublished(400.0)
    alpha: float = unpublished(0.34)
    B: float = unpublished(400.0)
    beta: float = unpublished(0.28)
    of_diversity: float = unpublished(1.0, signed=True)
    of_syntheticity: float = unpublished(1.0, signed=True)

    def _value(self, *, params: Values, tokens: Values, diversity: Values, syntheticity: Values) -> Values:
        useful = self.effective_tokens(tokens, diversity, syntheticity)
        return self.E + self.A / params**self.alpha + self.B / useful**self.beta

    def effective_tokens(self, tokens: Values, diversity: Values, syntheticity: Values) -> Values:
        """D·Q."""
        return tokens * np.exp(self.of_diversity * diversity + self.of_syntheticity * syntheticity)


def text_diversity(text: bytes) -> float:
    """Compressed over original size, by deflate: low for text that repeats itself. Compare texts of one length."""
    if not text:
        raise UserError("an empty text has no diversity")
    return len(zlib.compress(text, 9)) / len(text)


def text_syntheticity(teacher_loss: float) -> float:
    """1/perplexity of a text under a teacher, from its loss in nats a token: high where a model may have written it."""
    return float(np.exp(-teacher_loss))


LAWS = (DataQuality(),)
