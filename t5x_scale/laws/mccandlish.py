"""How large a batch is worth its while (McCandlish et al. 2018, 1812.06162).

The noise of a gradient is tr(Σ) for one token; at a batch of B_simple = tr(Σ)/|G|² tokens it is as large as the
gradient itself. Well below, twice the batch saves half the steps; well above, it saves none.

Both are estimated without bias from the squared norms of the gradients of two batch sizes, which gradient accumulation
has at hand: the micro-batch's and the whole batch's (`StepConfig.noise_scale`). Single steps are far too noisy to
divide, so numerator and denominator are averaged first.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws.constants import unpublished
from t5x_scale.laws.interface import Law, Values


@dataclasses.dataclass(frozen=True)
class StepsForBatch(Law):
    """S = S_min·(1 + B_crit/B) steps to a fixed loss at a batch of B tokens.

    With E = S·B tokens and E_min = S_min·B_crit it is the trade-off (S/S_min - 1)(E/E_min - 1) = 1.
    """

    name = "mccandlish_steps"
    source = "McCandlish et al. 2018, section 2.3"
    predicts = "steps"
    unit = "steps to one loss of one model"

    S_min: float = unpublished(1e3)
    B_crit: float = unpublished(1e5)

    def _value(self, *, batch_tokens: Values) -> Values:
        return self.S_min * (1 + self.B_crit / batch_tokens)

    @property
    def E_min(self) -> float:
        """The fewest tokens, those of a tiny batch."""
        return self.S_min * self.B_crit


@dataclasses.dataclass(frozen=True)
class StepForBatch(Law):
    """ε(B) = ε_max/(1 + B_noise/B), the best learning rate of SGD at a batch of B tokens."""

    name = "mccandlish_learning_rate"
    source = "McCandlish et al. 2018, section 2.2"
    predicts = "learning_rate"
    unit = "of SGD"

    largest: float = unpublished(1e-2)
    B_noise: float = unpublished(1e5)

    def _value(self, *, batch_tokens: Values) -> Values:
        return self.largest / (1 + self.B_noise / batch_tokens)


def estimate(small: Values, large: Values, small_batch: Values, large_batch: Values) -> tuple[Values, Values]:
    """(tr(Σ), |G|²), unbiased, from |G_small|² and |G_large|², the squared norms of mean gradients (appendix A.1).

    Single estimates may be negative.

    Raises:
      UserError: unless the large batch is the larger one.
    """
    if np.any(np.asarray(large_batch) <= small_batch):
        raise UserError(f"the noise scale needs two batch sizes: {small_batch} and {large_batch}")
    signal = (large_batch * large - small_batch * small) / (large_batch - small_batch)
    trace = (small - large) / (1 / small_batch - 1 / large_batch)
    return trace, signal


def noise_scale(trace: np.ndarray, signal: np.ndarray, decay: float = 0.99) -> np.ndarray:
    """[steps] B_simple after each step: the ratio of two averages with exponentially fading memory.

    Steps where either is not finite change nothing. NaN where the averaged signal is not positive (yet).
    """
    found = np.full(len(trace), np.nan)
    above = below = 0.0
    for step, (noise, square) in enumerate(zip(trace, signal, strict=True)):
        if np.isfinite(noise) and np.isfinite(square):
            # Both start at nothing, which cancels in the ratio.
            above += (1 - decay) * (noise - above)
            below += (1 - decay) * (square - below)
        if below > 0:
            found[step] = above / below
    return found


def steps_factor(batch_tokens: float, critical_batch: float, new_batch: float) -> float:
    """Steps at another batch over those at this one, to the same loss: (1 + B_crit/B')/(1 + B_crit/B)."""
    return (1 + critical_batch / new_batch) / (1 + critical_batch / batch_tokens)


LAWS = (StepsForBatch(), StepForBatch())
