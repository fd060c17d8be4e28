"""Frequencies of RoPE, as trained and for contexts longer than those trained on.

With `d` features that turn, pair `i` turns by `position * base^(-2i/d)` radians. A scaling gives other frequencies,
and a factor on cosines and sines. Everything is worked out once, in float64, while a program is traced.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from t5x_scale.core.errors import UserError


def plain_frequencies(base: float, rotated: int) -> np.ndarray:
    """`base^(-2i/d)`, float64 [rotated / 2] (Su et al. 2021, arXiv 2104.09864)."""
    return base ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of RoPE are changed.

    Attributes:
      factor: how many times longer the context becomes.
    """

    factor: float

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise UserError(f"{type(self).__name__}.factor must be positive, not {self.factor!r}")

    def frequencies(self, base: float, rotated: int) -> np.ndarray:
        """Radians a position, float64 [rotated / 2]."""
        raise NotImplementedError

    def amplitude(self) -> float:
        """What cosines and sines are multiplied with."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class LinearScaling(RopeScaling):
    """Positions divided by `factor` (position interpolation, Chen et al. 2023, arXiv 2306.15595)."""

    def frequencies(self, base: float, rotated: int) -> np.ndarray:
        """All of them divided by `factor`."""
        return plain_frequencies(base, rotated) / self.factor


@dataclasses.dataclass(frozen=True)
class NtkScaling(RopeScaling):
    """A larger base, `base * factor^(d/(d-2))`: the slowest pair is stretched by `factor`, the fastest not at all.

    "NTK-aware" scaling (YaRN, section 3.1), the same for every length.
    """

    def frequencies(self, base: float, rotated: int) -> np.ndarray:
        """Those of the larger base."""
        if rotated <= 2:
            raise UserError(f"NtkScaling needs more than two features that turn, not {rotated}")
        return plain_frequencies(base * self.factor ** (rotated / (rotated - 2)), rotated)


@dataclasses.dataclass(frozen=True)
class YarnScaling(RopeScaling):
    """YaRN (Peng et al. 2023, arXiv 2309.00071): fast pairs stay, slow ones are interpolated, a ramp between.

    Attributes:
      factor: how many times longer the context becomes.
      original_length: the context that was trained on.
      beta_fast, beta_slow: pairs that turn more often than `beta_fast` times over the original context stay as they
        are, those that turn less than `beta_slow` times are interpolated (section 3.2).
      attention_factor: multiplies cosines and sines, and so the logits by its square; None is `0.1 ln(factor) + 1`
        (section 3.4).
      truncate: the ends of the ramp are rounded outwards to whole pairs, as in the authors' code.
    """

    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_original_length(self, self.original_length)

    def frequencies(self, base: float, rotated: int) -> np.ndarray:
        """`interpolated` along the ramp, `plain` before it."""
        low, high = self._pair(self.beta_fast, base, rotated), self._pair(self.beta_slow, base, rotated)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotated - 1)
        width = high - low or 0.001
        interpolated = np.clip((np.arange(rotated // 2, dtype=np.float64) - low) / width, 0, 1)
        return plain_frequencies(base, rotated) * (1 - interpolated + interpolated / self.factor)

    def _pair(self, turns: float, base: float, rotated: int) -> float:
        """The pair, as a real number, that turns `turns` times over the original context."""
        return rotated * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    def amplitude(self) -> float:
        """The attention factor; 1 by default where the context does not grow."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclasses.dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """Llama 3.1's ramp, over turns instead of pairs.

    Attributes:
      factor: how many times longer the context becomes.
      original_length: the context that was trained on.
      low_frequency_factor: pairs that turn less often over the original context are interpolated.
      high_frequency_factor: pairs that turn more often stay as they are.
    """

    original_length: int
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_original_length(self, self.original_length)
        if not self.low_frequency_factor < self.high_frequency_factor:
            raise UserError(
                f"Llama3Scaling.low_frequency_factor={self.low_frequency_factor} must be below "
                f"high_frequency_factor={self.high_frequency_factor}"
            )

    def frequencies(self, base: float, rotated: int) -> np.ndarray:
        """`plain` where a pair turns often, `plain / factor` where it turns seldom, linear in the turns between."""
        plain = plain_frequencies(base, rotated)
        turns = self.original_length * plain / (2 * math.pi)
        width = self.high_frequency_factor - self.low_frequency_factor
        kept = np.clip((turns - self.low_frequency_factor) / width, 0, 1)
        return plain * (kept + (1 - kept) / self.factor)


def _check_original_length(scaling: RopeScaling, length: int) -> None:
    if length < 1:
        raise UserError(f"{type(scaling).__name__}.original_length must be the context trained on, not {length!r}")
