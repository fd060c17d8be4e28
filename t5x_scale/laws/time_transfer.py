"""Time Transfer (Filatov et al. 2024, 2410.05838): the best learning rate as a run gets longer, with muP.

Over batches it is a surge, eta(B) = eta_max/[½(√(B_n/B) + √(B/B_n))], highest at B_n; over time B_n grows with the
tokens T, as B_crit does, and eta_max stays. So three regimes follow as T grows:
eta ∝ √T well above B_n, constant around it, 1/√T well below. The best batch grows with T and stays below B_crit.
The width of a muP model moves neither: only its matrices' own factors change (`width_factor`).
No constants are published: fit it to a sweep of tokens, batches and learning rates of a small model.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_scale.laws.constants import unpublished
from t5x_scale.laws.interface import Law, Values

REGIMES = ("above", "around", "below")


@dataclasses.dataclass(frozen=True)
class TimeTransfer(Law):
    """eta(B, T) = eta_max/[½(√(B_n/B) + √(B/B_n))] with B_n = noise_share·T."""

    name = "time_transfer"
    source = "Filatov et al. 2024 (2410.05838), abstract; the surge formula from general knowledge"
    predicts = "learning_rate"
    unit = "base learning rate of a muP model"
    form_confidence = "medium"

    eta_max: float = unpublished(1e-2)
    noise_share: float = unpublished(1e-3)

    def _value(self, *, batch_tokens: Values, tokens: Values) -> Values:
        return self.eta_max * surge(batch_tokens, self.noise_batch(tokens))

    def noise_batch(self, tokens: Values) -> Values:
        """B_n after T tokens."""
        return self.noise_share * tokens

    def elasticity(self, *, batch_tokens: Values, tokens: Values) -> Values:
        """d ln eta/d ln T: from ½ far above B_n through 0 to -½ far below."""
        ratio = self.noise_batch(tokens) / batch_tokens
        return 0.5 * (1 - ratio) / (1 + ratio)

    def regime(self, *, batch_tokens: float, tokens: float) -> str:
        """`above`, `around` or `below` B_n, whichever power of T, ½, 0 or -½, is nearest."""
        slope = self.elasticity(batch_tokens=batch_tokens, tokens=tokens)
        return REGIMES[int(np.argmin(np.abs(slope - np.array([0.5, 0.0, -0.5]))))]

    def transfer(self, learning_rate: float, tokens: tuple[float, float], batch_tokens: tuple[float, float]) -> float:
        """A learning rate tuned at the first of two (tokens, batch), for the second; eta_max cancels."""
        before, after = (surge(batch, self.noise_batch(time)) for batch, time in zip(batch_tokens, tokens, strict=True))
        return float(learning_rate * after / before)


def surge(batch_tokens: Values, noise_batch: Values) -> Values:
    """1/[½(√(B_n/B) + √(B/B_n))]: 1 at B_n, falling to both sides with the root of the distance."""
    ratio = np.sqrt(batch_tokens / noise_batch)
    return 2 / (ratio + 1 / ratio)


def width_factor(width: float, base_width: float) -> float:
    """The factor of the learning rate of a muP model's hidden matrices under Adam; the base rate does not move."""
    return base_width / width


LAWS = (TimeTransfer(),)
