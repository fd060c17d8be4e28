"""BiMix (Ge et al. 2024, 2405.14908): the loss of a domain in its share of the mixture and in steps.

Five constants for each domain, of which the paper's values are not known to us: fit them to a few mixtures, each
evaluated along its run (the paper: every 5B tokens), and `best_shares` mixes the domains. At fixed steps the loss is a
straight line in the logarithms of loss and share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws.bounded import SHARE, BoundedLaw
from t5x_scale.laws.constants import unpublished
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Fit, Values


@dataclasses.dataclass(frozen=True)
class BiMix(BoundedLaw):
    """L_i(r_i, s) = (A_i/r_i^alpha_i)·(B_i/s^beta_i + C_i) of domain i, with share r_i = `ratio`, after s `steps`.

    A scales B and C: only their products are seen, so a fit holds A at 1 unless told otherwise.
    """

    name = "bimix"
    source = "Ge et al. 2024 (2405.14908)"
    unit = "nats a token of the domain"
    domain = Domain(ratio=SHARE)
    bounds = Domain(ratio=SHARE)

    A: float = unpublished(1.0)
    alpha: float = unpublished(0.1, signed=True)
    B: float = unpublished(10.0)
    beta: float = unpublished(0.3)
    C: float = unpublished(2.0)

    def _value(self, *, ratio: Values, steps: Values) -> Values:
        return self.A / ratio**self.alpha * (self.B / steps**self.beta + self.C)

    @classmethod
    def fit(cls, data: Mapping[str, Any], **options: Any) -> Fit[Self]:
        """By trust-region least squares, as published; options as of `fitting.fit_law`."""
        fixed = {"A": 1.0, **(options.pop("fixed", None) or {})}
        return super().fit(data, **{"delta": None, "fixed": fixed, **options})


def best_shares(laws: Sequence[BiMix], steps: float, weights: Sequence[float] | None = None) -> np.ndarray:
    """[domains] shares that sum to 1 and make the weighted sum of the domains' losses lowest after `steps`.

    Each loss is convex in its share, so the optimum is where one more share of every domain is worth the same.

    Raises:
      UserError: for weights of another number, or a domain whose loss does not fall with its share.
    """
    weights = [1.0] * len(laws) if weights is None else list(weights)
    if len(weights) != len(laws):
        raise UserError(f"{len(weights)} weights for {len(laws)} domains")
    exponents = np.array([law.alpha for law in laws])
    if not np.all(exponents > 0):
        raise UserError(f"a domain's loss does not fall with its share: exponents {exponents.tolist()}")
    alone = np.array([law.loss(ratio=1.0, steps=steps) for law in laws])
    slopes = np.log(np.array(weights) * exponents * alone)

    def shares(log_price: float) -> np.ndarray:
        return np.exp((slopes - log_price) / (1 + exponents))

    from scipy import optimize

    # At the highest slope no share is above 1; at the lower end every one is above 1/len(laws).
    ends = float(slopes.min()), float(slopes.max() + (1 + exponents.max()) * math.log(max(len(laws), 2)))
    price = optimize.brentq(lambda x: float(shares(x).sum()) - 1, *ends, xtol=1e-13)
    found = shares(price)
    return found / found.sum()


LAWS = (BiMix(),)
