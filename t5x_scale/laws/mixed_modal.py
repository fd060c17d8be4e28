"""Mixed-modal models (Aghajanyan et al. 2023, 2301.03728): two kinds of tokens in one model, in synergy or competition.

A pair's loss is the mean of what each kind alone would have, minus a synergy, plus what the two compete for in
parameters and in data. Beyond the size and tokens where the synergy outweighs the rest, training together pays; speech
with text gets there at about 30B parameters and 45B tokens, says the paper. Its pair constants are not known to us. All
losses are of the modality's own tokens.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.laws.constants import constant, unpublished
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import solve
from t5x_scale.laws.interface import Law, Values

_SOURCE = "Aghajanyan et al. 2023 (2301.03728)"
_TRANSCRIBED = "medium"

# Over 250 runs (abstract).
_DOMAIN = Domain(params=(8e6, 30e9), tokens=(5e9, 100e9))

# Where speech and text begin to help each other: (params, tokens).
SPEECH_TEXT_CROSSING = (30e9, 45e9)


@dataclasses.dataclass(frozen=True)
class TextOnly(Law):
    """L(N, D) = E + A/N^alpha + B/D^beta of text alone."""

    name = "modal_text"
    source = f"{_SOURCE}, by transcription"
    unit = "nats a token of the modality"
    domain = _DOMAIN

    A: float = constant(492.51, confidence=_TRANSCRIBED)
    B: float = constant(1987.40, confidence=_TRANSCRIBED)
    E: float = constant(2.42, confidence=_TRANSCRIBED)
    alpha: float = constant(0.18, confidence=_TRANSCRIBED)
    beta: float = constant(0.22, confidence=_TRANSCRIBED)

    def _value(self, *, params: Values, tokens: Values) -> Values:
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta


@dataclasses.dataclass(frozen=True)
class CodeOnly(TextOnly):
    """The same of code."""

    name = "modal_code"

    A: float = constant(611.91, confidence=_TRANSCRIBED)
    B: float = constant(4484.08, confidence=_TRANSCRIBED)
    E: float = constant(0.16, confidence=_TRANSCRIBED)
    alpha: float = constant(0.37, confidence=_TRANSCRIBED)
    beta: float = constant(0.32, confidence=_TRANSCRIBED)


@dataclasses.dataclass(frozen=True)
class ImageOnly(TextOnly):
    """The same of images."""

    name = "modal_image"

    A: float = constant(340.96, confidence=_TRANSCRIBED)
    B: float = constant(875.30, confidence=_TRANSCRIBED)
    E: float = constant(2.84, confidence=_TRANSCRIBED)
    alpha: float = constant(0.13, confidence=_TRANSCRIBED)
    beta: float = constant(0.13, confidence=_TRANSCRIBED)


@dataclasses.dataclass(frozen=True)
class SpeechOnly(TextOnly):
    """The same of speech."""

    name = "modal_speech"

    A: float = constant(154.45, confidence=_TRANSCRIBED)
    B: float = constant(205.10, confidence=_TRANSCRIBED)
    E: float = constant(3.02, confidence=_TRANSCRIBED)
    alpha: float = constant(0.31, confidence=_TRANSCRIBED)
    beta: float = constant(0.24, confidence=_TRANSCRIBED)


@dataclasses.dataclass(frozen=True)
class ImageTextOnly(TextOnly):
    """The same of images with their texts."""

    name = "modal_image_text"

    A: float = constant(320.51, confidence=_TRANSCRIBED)
    B: float = constant(658.31, confidence=_TRANSCRIBED)
    E: float = constant(2.47, confidence=_TRANSCRIBED)
    alpha: float = constant(0.12, confidence=_TRANSCRIBED)
    beta: float = constant(0.11, confidence=_TRANSCRIBED)


@dataclasses.dataclass(frozen=True)
class MoleculesOnly(TextOnly):
    """The same of molecules."""

    name = "modal_molecules"

    A: float = constant(158.19, confidence=_TRANSCRIBED)
    B: float = constant(189.36, confidence=_TRANSCRIBED)
    E: float = constant(2.39, confidence=_TRANSCRIBED)
    alpha: float = constant(0.37, confidence=_TRANSCRIBED)
    beta: float = constant(0.26, confidence=_TRANSCRIBED)


@dataclasses.dataclass(frozen=True)
class MixedModalPair(Law):
    """L(N, D_i, D_j) = [L_i(N, D_i) + L_j(N, D_j)]/2 - C + A/N^alpha + B/(D_i + D_j)^beta.

    The loss is the mean over both kinds; `tokens` are those of the first, `other_tokens` of the second, and
    `alone_loss`, the term in brackets halved, is what the two have apart: see `alone`.
    """

    name = "mixed_modal"
    source = _SOURCE
    unit = "nats a token, mean of the two modalities"
    domain = _DOMAIN

    C: float = unpublished(0.1)
    A: float = unpublished(50.0)
    alpha: float = unpublished(0.3)
    B: float = unpublished(50.0)
    beta: float = unpublished(0.3)

    def _value(self, *, params: Values, tokens: Values, other_tokens: Values, alone_loss: Values) -> Values:
        return alone_loss - self.synergy(params, tokens, other_tokens)

    def synergy(self, params: Values, tokens: Values, other_tokens: Values) -> Values:
        """What the two gain by each other, in nats; negative where they compete."""
        return self.C - self.A / params**self.alpha - self.B / (tokens + other_tokens) ** self.beta

    def crossing_params(self, tokens: float, other_tokens: float, low: float = 1e3, high: float = 1e18) -> float:
        """The size from which the two help each other on so many tokens.

        Raises:
          UserError: if there is none: more than C is lost to the data's competition alone.
        """
        return solve(lambda params: float(self.synergy(params, tokens, other_tokens)), low, high)


def alone(first: Law, second: Law, params: Values, tokens: Values, other_tokens: Values) -> Values:
    """Mean of the losses that two modalities have apart, by their laws."""
    return (first.loss(params=params, tokens=tokens) + second.loss(params=params, tokens=other_tokens)) / 2


LAWS = (TextOnly(), CodeOnly(), ImageOnly(), SpeechOnly(), ImageTextOnly(), MoleculesOnly(), MixedModalPair())
