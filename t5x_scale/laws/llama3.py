"""Llama 3's compute law (2407.21783, section 3.2.1): the best number of tokens for a budget.

The text prints D = 0.29·C^0.53, the label of its figure 0.299·C^0.537. Only the figure's constants reproduce the
extrapolation that chose the flagship, 16.55T tokens at 3.8e25 FLOPs: they give 16.3T, the text's 10.5T.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import allocate, checked_budget
from t5x_scale.laws.interface import Optimum
from t5x_scale.laws.power import OfFlops
from t5x_scale.laws.units import FLOPS_PER_PARAM_TOKEN


@dataclasses.dataclass(frozen=True)
class Llama3(OfFlops):
    """D_opt = 0.299·C^0.537, as the figure has it; parameters are what 6·N·D = C leaves."""

    name = "llama3"
    source = "Llama Team 2024 (2407.21783), figure 3"
    predicts = "tokens"
    unit = "tokens"
    # The budgets of its IsoFLOP valleys.
    domain = Domain(flops=(6e18, 1e22))
    with_embeddings = True

    coefficient: float = constant(0.299)
    exponent: float = constant(0.537)

    def _optimum(self, **budget: float) -> Optimum:
        """Tokens and params at `flops`."""
        flops = checked_budget(self, budget, required=("flops",))["flops"]
        tokens = self.predict(flops=flops)
        return allocate(self, flops / (FLOPS_PER_PARAM_TOKEN * tokens), tokens, {"flops": flops})


@dataclasses.dataclass(frozen=True)
class Llama3Text(Llama3):
    """D_opt = 0.29·C^0.53, as the text rounds it: at 3.8e25 FLOPs a third fewer tokens than its own decision."""

    name = "llama3_text"
    source = "Llama Team 2024 (2407.21783), section 3.2.1"

    coefficient: float = constant(0.29)
    exponent: float = constant(0.53)


LAWS = (Llama3(), Llama3Text())
