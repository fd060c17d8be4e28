"""From Kaplan's allocation to Chinchilla's, one cause at a time (Porian et al. 2024, 2406.19146), and how they trained.

Five exponents of N_opt ∝ C^a on RefinedWeb, each with one more correction, through the sizes the paper extrapolates to
at Gopher's 5.88e23 FLOPs. N includes the head and no input embeddings; sequences are of 2048 tokens.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Law, Values
from t5x_scale.laws.power import OfParams, ParamsForFlops

# Budgets 1.25e16·2^i, i = 0 … 11, each the FLOPs of one valley.
FLOP_GRID = tuple(1.25e16 * 2**i for i in range(12))

SEQUENCE_LENGTH = 2048

# Models from 5M to 901M parameters.
_SIZES = (5e6, 901e6)

_GOPHER = 5.88e23
_SOURCE = "Porian et al. 2024, RefinedWeb"


@dataclasses.dataclass(frozen=True)
class PorianAllocation(ParamsForFlops):
    """N_opt = N(5.88e23)·(C/5.88e23)^a, with tuned learning rate, batch and beta2: Chinchilla's allocation.

    The learning rate is constant: its decay turned out not to matter for the exponent.
    """

    name = "porian"
    source = _SOURCE
    domain = Domain(flops=(FLOP_GRID[0], FLOP_GRID[-1]), params=_SIZES)
    with_embeddings = False
    per = _GOPHER

    coefficient: float = constant(77e9)
    exponent: float = constant(0.497)


@dataclasses.dataclass(frozen=True)
class PorianKaplan(PorianAllocation):
    """Kaplan's experiment again: 0.835 (0.82 to 0.85); 0.864 on OpenWebText2."""

    name = "porian_kaplan"
    coefficient: float = constant(3e12)
    exponent: float = constant(0.835)


@dataclasses.dataclass(frozen=True)
class PorianHead(PorianAllocation):
    """And the FLOPs of the last layer counted."""

    name = "porian_head"
    coefficient: float = constant(787e9)
    exponent: float = constant(0.706)


@dataclasses.dataclass(frozen=True)
class PorianWarmup(PorianAllocation):
    """And a warm-up in proportion to the size of the model (about N tokens)."""

    name = "porian_warmup"
    coefficient: float = constant(292e9)
    exponent: float = constant(0.602)


@dataclasses.dataclass(frozen=True)
class PorianCosine(PorianAllocation):
    """And a cosine as long as each run."""

    name = "porian_cosine"
    coefficient: float = constant(183e9)
    exponent: float = constant(0.571)


@dataclasses.dataclass(frozen=True)
class PorianLearningRate(OfParams):
    """eta = 3.7·N^-0.36, for AdamW with beta2 tuned too."""

    name = "porian_learning_rate"
    source = "Porian et al. 2024, read in a public transcription"
    predicts = "learning_rate"
    unit = "of AdamW"
    domain = Domain(params=_SIZES)
    with_embeddings = False

    coefficient: float = constant(3.7)
    exponent: float = constant(-0.36, signed=True)


@dataclasses.dataclass(frozen=True)
class PorianBatch(OfParams):
    """B = 0.7576·N^0.703 tokens, which are 0.00037·N^0.703 sequences of 2048."""

    name = "porian_batch"
    source = "Porian et al. 2024, read in a public transcription"
    predicts = "batch_tokens"
    unit = "tokens"
    domain = Domain(params=_SIZES)
    with_embeddings = False

    coefficient: float = constant(0.7576)
    exponent: float = constant(0.703)


@dataclasses.dataclass(frozen=True)
class PorianBeta2(Law):
    """beta2 of AdamW: 0.95 is not enough at batches up to 128 sequences of 2048 tokens, where 0.99 or more is needed.

    The paper compared 0.95, 0.99 and 0.999; this is the least that it found good.
    """

    name = "porian_beta2"
    source = "Porian et al. 2024"
    predicts = "beta2"
    unit = "of AdamW"

    small: float = constant(0.99)
    large: float = constant(0.95)
    largest_small: float = constant(128 * SEQUENCE_LENGTH)

    def _value(self, *, batch_tokens: Values) -> Values:
        return np.where(np.asarray(batch_tokens) <= self.largest_small, self.small, self.large)


LAWS = (
    PorianAllocation(),
    PorianKaplan(),
    PorianHead(),
    PorianWarmup(),
    PorianCosine(),
    PorianLearningRate(),
    PorianBatch(),
    PorianBeta2(),
)
