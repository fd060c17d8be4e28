"""Span corruption: T5's objective, for a decoder."""

from __future__ import annotations

import dataclasses
import functools

from t5x_scale.data.objectives.denoisers import Denoiser, SpanDenoiser
from t5x_scale.data.objectives.denoising import Denoising


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Denoising):
    """Random spans are replaced by sentinels and predicted behind them (Raffel et al. 2020, section 3.1.4).

    A row is [mode] inputs targets end, the inputs a bidirectional prefix, the loss on the targets alone; lengths are
    T5's (`noise_lengths`), layouts those of `denoisers`.

    Attributes:
      noise_density: share of the text that is predicted.
      mean_span: mean length of a span, in tokens.
      mode: the mode token, where `mode_tokens` is set; here it is not by default.
    """

    noise_density: float = 0.15
    mean_span: float = 3.0
    mode: str = "[NLU]"
    mode_tokens: bool = False

    def __post_init__(self):
        _ = self.mixture

    @functools.cached_property
    def mixture(self) -> tuple[tuple[Denoiser, float], ...]:
        return ((SpanDenoiser(self.mean_span, self.noise_density, self.mode), 1.0),)
