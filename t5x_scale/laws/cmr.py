"""Critical mixture ratio (Gu et al. 2024, 2407.17467): the largest domain share that leaves the general loss in peace.

In peace means: no more than 0.05 nats above where it was. The share grows with the tokens of continued training, by one
power law for each of four models; the paper found none across sizes, so `nearest` takes the model that is closest. Its
laws were fitted up to 20B tokens of finance; a domain nearer to general text allows more (papers, 460M: 36.7 %).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar

from t5x_scale.laws.bounded import SHARE, BoundedLaw
from t5x_scale.laws.constants import constant, unpublished
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Law, Values

_SOURCE = "Gu et al. 2024 (2407.17467), table 5"
_TRANSCRIBED = "medium"

# T counts 0.2B tokens.
TOKENS_PER_T = 0.2e9

# Rise of the general loss that the paper allows, in nats.
TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class CriticalRatio(Law):
    """R(T) = a·T^s + b, for a model of 460M parameters; T = tokens/0.2e9."""

    name = "cmr_460m"
    source = _SOURCE
    predicts = "ratio"
    unit = "share of the domain"
    domain = Domain(params=(460e6, 460e6), tokens=(TOKENS_PER_T, 20e9))
    residuals = "linear"

    model_params: ClassVar[float] = 460e6

    a: float = constant(0.22524761, confidence=_TRANSCRIBED, signed=True)
    s: float = constant(0.26944345, confidence=_TRANSCRIBED, signed=True)
    b: float = constant(-0.48139982, confidence=_TRANSCRIBED, signed=True)

    def _value(self, *, tokens: Values) -> Values:
        """Negative where the fit knows no share that is small enough."""
        return self.a * (tokens / TOKENS_PER_T) ** self.s + self.b


@dataclasses.dataclass(frozen=True)
class CriticalRatio940M(CriticalRatio):
    """The same for 940M parameters."""

    name = "cmr_940m"
    domain = Domain(params=(940e6, 940e6), tokens=(TOKENS_PER_T, 20e9))
    model_params = 940e6

    a: float = constant(0.7520627, confidence=_TRANSCRIBED, signed=True)
    s: float = constant(0.13720245, confidence=_TRANSCRIBED, signed=True)
    b: float = constant(-1.06581937, confidence=_TRANSCRIBED, signed=True)


@dataclasses.dataclass(frozen=True)
class CriticalRatio1600M(CriticalRatio):
    """The same for 1.6B parameters."""

    name = "cmr_1.6b"
    domain = Domain(params=(1.6e9, 1.6e9), tokens=(TOKENS_PER_T, 20e9))
    model_params = 1.6e9

    a: float = constant(-2.36384831, confidence=_TRANSCRIBED, signed=True)
    s: float = constant(-0.15125569, confidence=_TRANSCRIBED, signed=True)
    b: float = constant(1.59223649, confidence=_TRANSCRIBED, signed=True)


@dataclasses.dataclass(frozen=True)
class CriticalRatio3100M(CriticalRatio):
    """The same for 3.1B parameters."""

    name = "cmr_3.1b"
    domain = Domain(params=(3.1e9, 3.1e9), tokens=(TOKENS_PER_T, 20e9))
    model_params = 3.1e9

    a: float = constant(-2.5368197, confidence=_TRANSCRIBED, signed=True)
    s: float = constant(-0.42071423, confidence=_TRANSCRIBED, signed=True)
    b: float = constant(0.84375368, confidence=_TRANSCRIBED, signed=True)


@dataclasses.dataclass(frozen=True)
class RatioLoss(BoundedLaw):
    """L(R) = a·R^s + b: the loss of the domain in its share, at a fixed number of tokens; fitted, the paper predicts
    the loss at 25 % from 33 % and more within 0.1 %."""

    name = "cmr_loss"
    source = "Gu et al. 2024 (2407.17467), table 2"
    unit = "nats a token of the domain"
    domain = Domain(ratio=SHARE)
    bounds = Domain(ratio=SHARE)

    a: float = unpublished(0.3, signed=True)
    s: float = unpublished(-0.2, signed=True)
    b: float = unpublished(1.0, signed=True)

    def _value(self, *, ratio: Values) -> Values:
        return self.a * ratio**self.s + self.b

    @classmethod
    def starts(cls) -> Iterator[dict[str, float]]:
        """Falling curves of both kinds: a and s have opposite signs."""
        yield {"a": 0.3, "s": -0.2, "b": 1.0}
        yield {"a": -0.3, "s": 0.2, "b": 2.0}


_BY_SIZE = (CriticalRatio(), CriticalRatio940M(), CriticalRatio1600M(), CriticalRatio3100M())


def nearest(params: float) -> CriticalRatio:
    """The law of the model whose size is nearest, by ratio; its `outside` says that it is another size."""
    return min(_BY_SIZE, key=lambda law: abs(math.log(params / law.model_params)))


LAWS = (*_BY_SIZE, RatioLoss())
