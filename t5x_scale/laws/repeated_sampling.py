"""Repeated sampling (Brown et al. 2024, 2407.21787): the share of problems solved at least once in k samples.

Coverage grows as a power law of k in its logarithm because problems differ: each fails with (1 - p)^k, and p has a
heavy tail. Published pairs: SWE-bench Lite 15.9 % at 1 and 56 % at 250 samples; CodeContests with Gemma-2B 0.02 % at 1
and 7.1 % at 10000.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws.constants import unpublished
from t5x_scale.laws.interface import Law, Values


@dataclasses.dataclass(frozen=True)
class Coverage(Law):
    """c = exp(-a·k^-b) for k samples, a and b above 0 (the paper writes exp(a·k^b), a and b below)."""

    name = "coverage"
    source = "Brown et al. 2024 (2407.21787)"
    predicts = "coverage"
    unit = "share of problems"

    a: float = unpublished(2.0)
    b: float = unpublished(0.3)

    def _value(self, *, samples: Values) -> Values:
        return np.exp(-self.a * samples**-self.b)

    def samples_for(self, coverage: float) -> float:
        """The samples at which that share of the problems is solved."""
        if not 0 < coverage < 1:
            raise UserError(f"coverage is {coverage}; expected a share between 0 and 1")
        return float((-math.log(coverage) / self.a) ** (-1 / self.b))

    @classmethod
    def through(cls, first: tuple[float, float], second: tuple[float, float]) -> Coverage:
        """The law through two pairs of (samples, coverage)."""
        (k1, c1), (k2, c2) = first, second
        if not (0 < k1 < k2 and 0 < c1 < c2 < 1):
            raise UserError(f"coverage must grow with samples, between 0 and 1: {first}, {second}")
        b = math.log(math.log(c1) / math.log(c2)) / math.log(k2 / k1)
        return cls(a=-math.log(c1) * k1**b, b=b)


def pass_at_k(samples: Any, correct: Any, k: int) -> float:
    """Coverage at k, unbiased, from n samples of each problem of which c were correct; arrays [problems] or numbers.

    The mean of 1 - C(n-c, k)/C(n, k), as the product 1 - Π_{j=n-c+1..n} (1 - k/j), which no n makes overflow.

    Raises:
      UserError: for more correct ones than samples, or fewer samples than k.
    """
    n, c = np.broadcast_arrays(np.atleast_1d(samples), np.atleast_1d(correct))
    if k < 1 or np.any(n < k) or np.any(c < 0) or np.any(c > n):
        raise UserError(f"pass@{k} needs at least k samples of each problem, and 0 to n correct ones")
    return float(np.mean([_solved(int(total), int(good), k) for total, good in zip(n, c, strict=True)]))


def _solved(samples: int, correct: int, k: int) -> float:
    # With fewer failures than k, one of k is right; a factor of the product is 0 or below.
    if samples - correct < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1)))


LAWS = (Coverage(),)
