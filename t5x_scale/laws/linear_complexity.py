"""Models of linear complexity (Shen et al. 2024, 2406.16690): loss and best size in compute, beside softmax attention.

In the losses they are alike; in finding a needle in a haystack linear ones reach 10 to 30 % where softmax reaches 50 to
60 %, which no law of loss tells. That compute is in PF-days is our reading (given here as `flops`, converted inside).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import checked_budget
from t5x_scale.laws.interface import Optimum
from t5x_scale.laws.power import OfFlops
from t5x_scale.laws.units import FLOPS_PER_PARAM_TOKEN, PF_DAY


@dataclasses.dataclass(frozen=True)
class SoftmaxAttention(OfFlops):
    """LLaMA with softmax attention: L = 3.7087·C^-0.0798, N_opt = 1.82e8·C^0.7118."""

    name = "linear_complexity_softmax"
    source = "Shen et al. 2024 (2406.16690), read in a public transcription"
    unit = "nats a token of 300B tokens of its own corpus"
    form_confidence = "medium"
    per = PF_DAY
    # The largest model, 7B, on all 300B tokens.
    domain = Domain(flops=(0.0, 6 * 7e9 * 300e9))
    with_embeddings = None
    best_params: ClassVar[tuple[float, float]] = (1.82e8, 0.7118)

    coefficient: float = constant(3.7087)
    exponent: float = constant(-0.0798, signed=True)

    def _optimum(self, **budget: float) -> Optimum:
        """The best size at `flops`; tokens are what 6·N·D = C leaves."""
        flops = checked_budget(self, budget, required=("flops",))["flops"]
        scale, exponent = self.best_params
        params = scale * (flops / self.per) ** exponent
        values = {"flops": flops, "params": params, "tokens": flops / (FLOPS_PER_PARAM_TOKEN * params)}
        return Optimum({**values, "loss": self.predict(flops=flops)}, self.name, tuple(self.outside(flops=flops)))


@dataclasses.dataclass(frozen=True)
class Tnl(SoftmaxAttention):
    """TNL, whose state decays at a rate that does not depend on the data."""

    name = "linear_complexity_tnl"
    best_params = (2.74e8, 0.6470)
    coefficient: float = constant(3.5391)
    exponent: float = constant(-0.0768, signed=True)


@dataclasses.dataclass(frozen=True)
class Hgrn2(SoftmaxAttention):
    """HGRN2, whose state decays as the data say."""

    name = "linear_complexity_hgrn2"
    best_params = (2.66e8, 0.6427)
    coefficient: float = constant(3.4788)
    exponent: float = constant(-0.0753, signed=True)


@dataclasses.dataclass(frozen=True)
class CosFormer2(SoftmaxAttention):
    """cosFormer2, whose state does not decay."""

    name = "linear_complexity_cosformer2"
    best_params = (2.65e8, 0.6516)
    coefficient: float = constant(3.5877)
    exponent: float = constant(-0.0756, signed=True)


LAWS = (SoftmaxAttention(), Tnl(), Hgrn2(), CosFormer2())
