"""Mixtures of denoisers: UL2 (Tay et al. 2022, arXiv 2205.05131) and UL2R (Tay et al. 2022, arXiv 2210.11399)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives.denoisers import Denoiser, PrefixDenoiser, SpanDenoiser
from t5x_scale.data.objectives.denoising import Denoising, check_shares

# UL2, table 1: regular, sequential and extreme denoising, each with its mode token.
UL2_DENOISERS: tuple[Denoiser, ...] = (
    SpanDenoiser(3.0, 0.15, "[NLU]"),
    SpanDenoiser(8.0, 0.15, "[NLU]"),
    PrefixDenoiser(0.25, "[S2S]"),
    SpanDenoiser(3.0, 0.5, "[NLG]"),
    SpanDenoiser(8.0, 0.5, "[NLG]"),
    SpanDenoiser(64.0, 0.15, "[NLG]"),
    SpanDenoiser(64.0, 0.5, "[NLG]"),
)
# UL2R, section 3: half S, a quarter R, a quarter X, "mean span 32 or corruption up to 50 %", here half each. The paper
# splits 2048 positions into 1024 and 1024, which the uniform split of S gives in the mean.
UL2R_DENOISERS: tuple[Denoiser, ...] = (
    PrefixDenoiser(0.5, "[S2S]"),
    SpanDenoiser(3.0, 0.15, "[NLU]"),
    SpanDenoiser(32.0, 0.15, "[NLG]"),
    SpanDenoiser(3.0, 0.5, "[NLG]"),
)
UL2R_RATES = (0.5, 0.25, 0.125, 0.125)


@dataclasses.dataclass(frozen=True)
class Ul2(Denoising):
    """UL2's seven denoisers, or any others.

    Attributes:
      denoisers: `SpanDenoiser` and `PrefixDenoiser` in any number.
      rates: share of the rows, or documents, for each denoiser, in any unit; equal when None.
    """

    denoisers: Sequence[Denoiser] = UL2_DENOISERS
    rates: Sequence[float] | None = None

    def __post_init__(self):
        # Lists, which configurations give, have no hash.
        object.__setattr__(self, "denoisers", tuple(self.denoisers))
        if not self.denoisers or not all(isinstance(denoiser, Denoiser) for denoiser in self.denoisers):
            raise UserError(
                f"{type(self).__name__}.denoisers must be SpanDenoiser or PrefixDenoiser objects, at least one"
            )
        if self.rates is not None:
            object.__setattr__(self, "rates", tuple(self.rates))
            check_shares(self.rates, len(self.denoisers), type(self).__name__)

    @functools.cached_property
    def mixture(self) -> tuple[tuple[Denoiser, float], ...]:
        rates = self.rates or (1.0,) * len(self.denoisers)
        total = sum(rates)
        return tuple((d, rate / total) for d, rate in zip(self.denoisers, rates, strict=True) if rate > 0)


@dataclasses.dataclass(frozen=True)
class Ul2r(Ul2):
    """UL2R: the mixture with which a causal model is continued (U-PaLM)."""

    denoisers: Sequence[Denoiser] = UL2R_DENOISERS
    rates: Sequence[float] | None = UL2R_RATES
