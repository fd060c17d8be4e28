"""Chinchilla's data fitted again (Besiroglu et al. 2024, 2404.10102).

240 of 245 points, digitised from a figure. The published fit had averaged its Huber losses where it should have summed
them, which ended its optimisation early and made its intervals too narrow. This refit agrees with approaches 1 and 2:
a = 0.5126 ± 0.018.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.laws.chinchilla import Chinchilla
from t5x_scale.laws.constants import constant


@dataclasses.dataclass(frozen=True)
class Besiroglu(Chinchilla):
    """L(N, D) = 1.8172 + 482.01/N^0.3478 + 2085.43/D^0.3658, with standard errors from a bootstrap."""

    name = "besiroglu"
    source = "Besiroglu et al. 2024"

    E: float = constant(1.8172, error=0.03)
    A: float = constant(482.01, error=124.58)
    B: float = constant(2085.43, error=1293.23)
    alpha: float = constant(0.3478, error=0.02, signed=True)
    beta: float = constant(0.3658, error=0.02, signed=True)


@dataclasses.dataclass(frozen=True)
class BesirogluWithOutliers(Chinchilla):
    """The same form on all 245 points; five of them pull it far away."""

    name = "besiroglu_with_outliers"
    source = "Besiroglu et al. 2024, with the five outliers"

    E: float = constant(1.89)
    A: float = constant(463.3)
    B: float = constant(12530.0)
    alpha: float = constant(0.345, signed=True)
    beta: float = constant(0.452, signed=True)


LAWS = (Besiroglu(), BesirogluWithOutliers())
