"""Optimal sparsity (Abnar et al. 2025, 2501.12370): which share of experts to leave idle, at a budget.

To be fitted rather than trusted. The constants come from transcriptions of a later version of the paper (equation 6,
table 3), and one public note says that an earlier one had no closed form; at 98 % sparsity, which was held out, they
explain 68 % of the variance of the loss where they explain 99 % of what was fitted.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.laws.bounded import BoundedLaw
from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import checked_budget, minimise
from t5x_scale.laws.interface import Optimum, Values
from t5x_scale.laws.units import FLOPS_PER_PARAM_TOKEN

# The sparsities of the paper.
SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)


def sparsity(experts: float, chosen: float) -> float:
    """S = (E - K)/E, the share of experts that a token does not go to."""
    return (experts - chosen) / experts


@dataclasses.dataclass(frozen=True)
class OptimalSparsity(BoundedLaw):
    """L = a/N^alpha + b/D^beta + c/(1-S)^lambda + d/((1-S)^delta·N^gamma) + e, with N all parameters.

    lambda is negative: the third term falls as experts fall idle, the fourth rises. FLOPs are 6·(1-S)·N·D.
    """

    name = "optimal_sparsity"
    source = "Abnar et al. 2025 (2501.12370), equation 6, table 3, by transcription"
    unit = "nats a token of RedPajama"
    domain = Domain(sparsity=(0.0, 0.98), flops=(3e19, 1e21))
    form_confidence = "medium"
    may_be_zero = frozenset({"sparsity"})
    # All experts idle is no model.
    bounds = Domain(sparsity=(0.0, 0.9999))

    a: float = constant(16612.50, confidence="medium")
    b: float = constant(5455.67, confidence="medium")
    c: float = constant(0.4598, confidence="medium")
    d: float = constant(17.26, confidence="medium")
    e: float = constant(0.94, confidence="medium")
    alpha: float = constant(0.5962, confidence="medium")
    beta: float = constant(0.3954, confidence="medium")
    lambda_: float = constant(-0.1666, confidence="medium", signed=True)
    delta: float = constant(0.1603, confidence="medium", signed=True)
    gamma: float = constant(0.1595, confidence="medium")

    def _value(self, *, params: Values, tokens: Values, sparsity: Values = 0.0) -> Values:
        active = 1 - sparsity
        of_size = self.a / params**self.alpha + self.d / (active**self.delta * params**self.gamma)
        return of_size + self.b / tokens**self.beta + self.c / active**self.lambda_ + self.e

    def _optimum(self, **budget: float) -> Optimum:
        """The best params and tokens for `flops`, at one `sparsity` if it is given, else at the best that was tried."""
        given = checked_budget(self, budget, ("flops",), ("sparsity",))
        choices = [given["sparsity"]] if "sparsity" in given else SPARSITIES
        return min((self._at(given["flops"], choice) for choice in choices), key=lambda found: found["loss"])

    def _at(self, flops: float, sparsity: float) -> Optimum:
        product = flops / (FLOPS_PER_PARAM_TOKEN * (1 - sparsity))
        params = minimise(lambda n: self.predict(params=n, tokens=product / n, sparsity=sparsity), 1.0, product)
        values = {"params": params, "tokens": product / params, "sparsity": sparsity}
        found = {"flops": flops, "active_params": (1 - sparsity) * params, **values, "loss": self.predict(**values)}
        return Optimum(found, self.name, tuple(self.outside(**found)))


LAWS = (OptimalSparsity(),)
