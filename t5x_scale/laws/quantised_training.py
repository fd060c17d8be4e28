"""Training in four bits (Chen et al. 2025, 2505.14302): what it adds to the loss, and what mixed precision saves.

L = E + A/N^alpha + B/D^beta + k·D^gamma_D·(log2 G)^gamma_G/N^gamma_N, with G weights (or activations) to a scale. The
loss added falls with size, grows with tokens and with coarser groups. Inputs of the second feed-forward matrix hold the
outliers: with 8 bits for them alone (`…_mixed`) much of what activations cost is gone. Of the share of parameters that
may be quantised at a given loss no law was found: larger models and finer granularity allow more (Cao et al. 2024,
2410.06722).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_scale.laws.bounded import COUNT, BoundedLaw
from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Values

_SOURCE = "Chen et al. 2025 (2505.14302), equation 5, table 1"


@dataclasses.dataclass(frozen=True)
class FourBits(BoundedLaw):
    """Weights and activations of 4 bits (W4A4); 80 runs."""

    name = "qat_w4a4"
    source = _SOURCE
    unit = "nats a token of their corpus"
    domain = Domain(params=(74e6, 594e6), tokens=(10e9, 100e9), group_size=(32.0, 256.0))
    bounds = Domain(group_size=COUNT)

    E: float = constant(1.9279)
    A: float = constant(237.7042)
    alpha: float = constant(0.3022)
    B: float = constant(596.2490)
    beta: float = constant(0.3022)
    k: float = constant(0.1582)
    gamma_N: float = constant(0.2186)
    gamma_D: float = constant(0.0745)
    gamma_G: float = constant(0.7779)

    def _value(self, *, params: Values, tokens: Values, group_size: Values = 128.0) -> Values:
        full = self.E + self.A / params**self.alpha + self.B / tokens**self.beta
        return full + self.added_loss(params, tokens, group_size)

    def added_loss(self, params: Values, tokens: Values, group_size: Values) -> Values:
        """What four bits add to the loss; nothing for groups of one."""
        return self.k * tokens**self.gamma_D * np.log2(group_size) ** self.gamma_G / params**self.gamma_N


@dataclasses.dataclass(frozen=True)
class FourBitWeights(FourBits):
    """Weights of 4 bits, activations of 16 (W4A16)."""

    name = "qat_w4a16"

    k: float = constant(0.2522)
    gamma_N: float = constant(0.3589)
    gamma_D: float = constant(0.1610)
    gamma_G: float = constant(0.3533)


@dataclasses.dataclass(frozen=True)
class FourBitActivations(FourBits):
    """Weights of 16 bits, activations of 4 (W16A4)."""

    name = "qat_w16a4"

    k: float = constant(0.1004)
    gamma_N: float = constant(0.1816)
    gamma_D: float = constant(0.0331)
    gamma_G: float = constant(0.9812)


@dataclasses.dataclass(frozen=True)
class MixedFourBits(FourBits):
    """W4A4 with 8 bits for the inputs of the second feed-forward matrix."""

    name = "qat_w4a4_mixed"

    k: float = constant(0.3519)
    gamma_N: float = constant(0.2637)
    gamma_D: float = constant(0.0964)
    gamma_G: float = constant(0.3407, confidence="medium")


LAWS = (FourBits(), FourBitWeights(), FourBitActivations(), MixedFourBits())
