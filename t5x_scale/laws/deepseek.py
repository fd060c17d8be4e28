"""DeepSeek LLM (2401.02954): model scale measured in FLOPs a token, and hyper-parameters in compute.

C = M·D with M the non-embedding FLOPs a token, attention included, instead of 6N: `flops_per_token`. `flops` are those.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import checked_budget
from t5x_scale.laws.interface import Law, Optimum
from t5x_scale.laws.power import OfFlops

_SOURCE = "DeepSeek-AI 2024 (2401.02954)"

# Section 3.2: eight budgets of IsoFLOP valleys.
_ISOFLOP = Domain(flops=(1e17, 3e20))
_HYPER = Domain(flops=(1e17, 2e19))

# Exponents of M_opt on three corpora: the better the data, the more of a budget goes to the model.
MODEL_EXPONENTS = {"early in-house": 0.450, "current in-house": 0.524, "openwebtext2": 0.578}


@dataclasses.dataclass(frozen=True)
class DeepSeekLearningRate(OfFlops):
    """eta_opt = 0.3118·C^-0.1250, of AdamW with a multi-step schedule."""

    name = "deepseek_learning_rate"
    source = f"{_SOURCE}, section 3.1"
    predicts = "learning_rate"
    unit = "of AdamW"
    domain = _HYPER
    with_embeddings = False

    coefficient: float = constant(0.3118)
    exponent: float = constant(-0.1250, signed=True)


@dataclasses.dataclass(frozen=True)
class DeepSeekBatch(OfFlops):
    """B_opt = 0.2920·C^0.3271 tokens."""

    name = "deepseek_batch"
    source = f"{_SOURCE}, section 3.1"
    predicts = "batch_tokens"
    unit = "tokens"
    domain = _HYPER
    with_embeddings = False

    coefficient: float = constant(0.2920)
    exponent: float = constant(0.3271)


@dataclasses.dataclass(frozen=True)
class DeepSeekTokens(OfFlops):
    """D_opt = 5.8316·C^0.4757 tokens."""

    name = "deepseek_tokens"
    source = f"{_SOURCE}, section 3.2"
    predicts = "tokens"
    unit = "tokens"
    domain = _ISOFLOP
    with_embeddings = False

    coefficient: float = constant(5.8316)
    exponent: float = constant(0.4757)


@dataclasses.dataclass(frozen=True)
class DeepSeekModel(OfFlops):
    """M_opt = 0.1715·C^0.5243 FLOPs a token."""

    name = "deepseek_model"
    source = f"{_SOURCE}, section 3.2"
    predicts = "flops_per_token"
    unit = "FLOPs a token"
    domain = _ISOFLOP
    with_embeddings = False

    coefficient: float = constant(0.1715)
    exponent: float = constant(0.5243)

    def _optimum(self, **budget: float) -> Optimum:
        """M, D and the hyper-parameters at `flops`.

        `params` are M/6, which counts attention's FLOPs as parameters: an upper bound.
        """
        flops = checked_budget(self, budget, required=("flops",))["flops"]
        per_token = self.predict(flops=flops)
        laws: tuple[Law, ...] = (DeepSeekTokens(), DeepSeekLearningRate(), DeepSeekBatch())
        values = {law.predicts: law.predict(flops=flops) for law in laws}
        outside = dict.fromkeys(line for law in (self, *laws) for line in law.outside(flops=flops))
        values |= {"flops": flops, "flops_per_token": per_token, "params": per_token / 6}
        return Optimum(values, self.name, tuple(outside))


def flops_per_token(num_layers: int, embed_dim: int, length: int) -> float:
    """M = 72·n_layer·d² + 12·n_layer·d·l, training FLOPs a token with attention and without embeddings.

    72·d² stands for a feed-forward layer four times as wide as the model and attention without grouped heads.
    """
    return 72.0 * num_layers * embed_dim**2 + 12.0 * num_layers * embed_dim * length


LAWS = (DeepSeekModel(), DeepSeekTokens(), DeepSeekLearningRate(), DeepSeekBatch())
