"""How large a vocabulary should be (Tao et al. 2024, 2407.13623): three approaches, by parameters outside of it.

N_nv are the parameters without vocabulary, N_v = V·d those of one table, C = 6·(N_nv + V·d)·D. A larger vocabulary
needs fewer tokens for a text (`tokens_per_character`) and makes losses a token incomparable: the law of loss is of a
loss normalised by unigrams, which is negative. Constants are those of the authors' repository.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import solve
from t5x_scale.laws.interface import Law, Values
from t5x_scale.laws.units import FLOPS_PER_PARAM_TOKEN

_SOURCE = "Tao et al. 2024 (2407.13623), repository sail-sg/scaling-with-vocab"

# The abstract: models from 33M to 3B parameters.
_DOMAIN = Domain(params=(33e6, 3e9))

# (N_nv up to, width of the model)
_WIDTHS = (
    (5e7, 512),
    (2e8, 768),
    (5e8, 1024),
    (1e9, 1536),
    (2e9, 2048),
    (5e9, 3200),
    (1e10, 4096),
    (2e10, 5120),
    (5e10, 6048),
    (1e11, 8192),
    (2e11, 12288),
    (5e11, 16384),
    (1e12, 20480),
)


def embed_dim_for(params: Values) -> Values:
    """d(N_nv), the widths they assume; beyond 1e12 parameters the last one."""
    limits, widths = np.array(_WIDTHS).T
    return widths[np.minimum(np.searchsorted(limits, params), len(widths) - 1)]


def tokens_per_character(vocab_size: Values) -> Values:
    """f(V), tokens a character of text, for BPE on SlimPajama; V is capped at 200000, where it was measured."""
    log = np.log(np.minimum(vocab_size, 200_000.0))
    return 0.00639222 * log**2 - 0.15811069 * log + 1.20470122


@dataclasses.dataclass(frozen=True)
class VocabularyIsoflop(Law):
    """Approach 1, valleys at fixed FLOPs: N_nv = k·C^0.5 and N_v = k_v·C^0.416, so V = N_v/d from N_nv."""

    name = "vocabulary_isoflop"
    source = f"{_SOURCE}, approach 1"
    predicts = "vocab_size"
    unit = "entries"
    domain = _DOMAIN
    with_embeddings = False

    size: float = constant(math.exp(-2.4846510))
    size_exponent: float = constant(0.5)
    vocabulary: float = constant(math.exp(-1.5890313))
    vocabulary_exponent: float = constant(0.4163623)

    def flops_for(self, params: Values) -> Values:
        """The budget at which `params` outside the vocabulary are best."""
        return (params / self.size) ** (1 / self.size_exponent)

    def _value(self, *, params: Values, embed_dim: Values | None = None) -> Values:
        table = self.vocabulary * self.flops_for(params) ** self.vocabulary_exponent
        return table / (embed_dim_for(params) if embed_dim is None else embed_dim)


@dataclasses.dataclass(frozen=True)
class VocabularyDerivative(Law):
    """Approach 2, along the derivative of FLOPs by V from one tuned point: N_v = N_v0·(N_nv/N_nv0)^0.835."""

    name = "vocabulary_derivative"
    source = f"{_SOURCE}, approach 2"
    predicts = "vocab_size"
    unit = "entries"
    domain = _DOMAIN
    with_embeddings = False

    table: float = constant(3_145_728.0)
    size: float = constant(33e6)
    exponent: float = constant(0.8353974)

    def _value(self, *, params: Values, embed_dim: Values | None = None) -> Values:
        table = self.table * (params / self.size) ** self.exponent
        return table / (embed_dim_for(params) if embed_dim is None else embed_dim)


@dataclasses.dataclass(frozen=True)
class VocabularyLoss(Law):
    """L_u = -E + A_1/N_nv^alpha_1 + A_2/N_v^alpha_2 + B/D^beta, with N_nv and N_v in millions and D in billions."""

    name = "vocabulary_loss"
    source = f"{_SOURCE}, approach 3"
    unit = "nats a token over those of the unigram distribution"
    residuals = "linear"
    domain = _DOMAIN
    with_embeddings = False

    E: float = constant(5.5327847)
    A_1: float = constant(1.8313852)
    A_2: float = constant(0.1958424)
    B: float = constant(2.1241123)
    alpha_1: float = constant(0.4466063)
    alpha_2: float = constant(0.6707375)
    beta: float = constant(0.4466063)

    def _value(self, *, params: Values, vocab_size: Values, tokens: Values, embed_dim: Values | None = None) -> Values:
        table = vocab_size * (embed_dim_for(params) if embed_dim is None else embed_dim)
        of_model = self.A_1 / (params / 1e6) ** self.alpha_1
        of_table = self.A_2 / (table / 1e6) ** self.alpha_2
        return of_model + of_table + self.B / (tokens / 1e9) ** self.beta - self.E


@dataclasses.dataclass(frozen=True)
class VocabularyParametric(VocabularyLoss):
    """Approach 3: the V at which dL_u/dV = 0 where C is fixed, so that every entry costs tokens.

    C is `flops`, or else the budget at which approach 1 finds the rest of the model best.
    """

    name = "vocabulary_parametric"
    predicts = "vocab_size"
    unit = "entries"

    def _value(self, *, params: Values, embed_dim: Values | None = None, flops: Values | None = None) -> Values:
        width = embed_dim_for(params) if embed_dim is None else embed_dim
        budget = VocabularyIsoflop().flops_for(params) if flops is None else flops
        return np.vectorize(self._best)(params, width, budget)

    def _best(self, params: float, embed_dim: float, flops: float) -> float:
        def slope(table: float) -> float:
            """dL_u/dN_v, in units of both terms' decline."""
            tokens = flops / (FLOPS_PER_PARAM_TOKEN * (params + table)) / 1e9
            gain = self.alpha_2 * self.A_2 * (table / 1e6) ** -self.alpha_2 / table
            loss = self.beta * self.B * tokens**-self.beta / (params + table)
            return loss - gain

        return solve(slope, 1.0, 1e3 * params) / embed_dim


LAWS = (VocabularyIsoflop(), VocabularyDerivative(), VocabularyParametric(), VocabularyLoss())
