"""Growth in depth (G_stack, Du et al. 2024, 2405.15319): train a shallow model, stack it, train on.

When to stack, d tokens of the small model, for the size and the FLOPs (of both) of the run; stacking four times is the
paper's advice where the best was between two and four. What it saves is rows, not a law: see `SPEEDUPS`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import checked_budget
from t5x_scale.laws.interface import Law, Optimum, Values
from t5x_scale.laws.units import FLOPS_PER_PARAM_TOKEN

GROWTH_FACTOR = 4.0

# (params, tokens from scratch) -> how much longer that took than growing to the same loss (section 4.1).
SPEEDUPS = {
    (410e6, 400e9): 0.531,
    (410e6, 700e9): 0.310,
    (1.1e9, 100e9): 0.491,
    (3e9, 180e9): 0.486,
    (3e9, 240e9): 0.545,
    (7e9, 160e9): 0.408,
    (7e9, 220e9): 0.553,
    (7e9, 280e9): 0.538,
}


@dataclasses.dataclass(frozen=True)
class GrowthTiming(Law):
    """log10 d = a·log10 N + b/log10 C + c: d `growth_tokens` of the small model, N params of the large one, C FLOPs."""

    name = "growth_timing"
    source = "Du et al. 2024 (2405.15319), equation 2"
    predicts = "growth_tokens"
    unit = "tokens of the small model"
    # Figure 8; params up to 3B, and 7B were trained by it.
    domain = Domain(params=(410e6, 3e9), flops=(8e19, 1.2e21))
    with_embeddings = False

    a: float = constant(0.88, signed=True)
    b: float = constant(163.27, signed=True)
    c: float = constant(-5.74, signed=True)

    def _value(self, *, params: Values, flops: Values) -> Values:
        return 10 ** (self.a * np.log10(params) + self.b / np.log10(flops) + self.c)

    def schedule(self, **budget: float) -> Optimum:
        """For `flops` and `params`: how long the small model trains, and the tokens that are left for the large one.

        `growth_factor`, the layers of the large model over those of the small one, is 4 unless given.

        Raises:
          UserError: where the small model alone would take all of the budget.
        """
        given = checked_budget(self, budget, ("flops", "params"), ("growth_factor",))
        factor = given.get("growth_factor", GROWTH_FACTOR)
        growth_tokens = self.predict(params=given["params"], flops=given["flops"])
        small = given["params"] / factor
        left = given["flops"] - FLOPS_PER_PARAM_TOKEN * small * growth_tokens
        if left <= 0:
            raise UserError(
                f"{given['flops']:.3g} FLOPs are spent before a model of {small:.3g} parameters has seen the "
                f"{growth_tokens:.3g} tokens after which the law {self.name} would stack it"
            )
        tokens = left / (FLOPS_PER_PARAM_TOKEN * given["params"])
        values = {"growth_factor": factor, "growth_tokens": growth_tokens, "small_params": small, "tokens": tokens}
        return Optimum({**given, **values}, self.name, tuple(self.outside(**given)))


def speedup(tokens_from_scratch: float, tokens_grown: float) -> float:
    """As the paper counts: how much longer from scratch, both in tokens of the large model; 300B to 194B are 0.546."""
    return tokens_from_scratch / tokens_grown - 1


LAWS = (GrowthTiming(),)
