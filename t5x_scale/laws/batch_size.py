"""Batch sizes, learning rates and weight decay in data and size, from three papers.

Shuai et al. 2024 (2412.01505) have two laws, at fixed data and at fixed compute. The exponent of the second was not
found: fit `ShuaiFixedCompute` to runs. DeepSeek's, Porian's and Kaplan's laws of batches are with those.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.laws.constants import constant, unpublished
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Law, Values
from t5x_scale.laws.power import OfFlops, OfTokens

# Step Law's largest runs: 1B parameters on 100B tokens.
_STEP_LAW = Domain(params=(0.0, 1e9), tokens=(0.0, 100e9))


@dataclasses.dataclass(frozen=True)
class ShuaiFixedData(OfTokens):
    """B_opt = 3.24e3·D^0.264 tokens, as a public training script that cites the paper has it."""

    name = "shuai_batch"
    source = "Shuai et al. 2024 (2412.01505), read in a public transcription"
    predicts = "batch_tokens"
    unit = "tokens"
    # 125M to 2.6B parameters, up to 300B tokens.
    domain = Domain(tokens=(0.0, 300e9), params=(125e6, 2.6e9))

    coefficient: float = constant(3.24e3, confidence="medium")
    exponent: float = constant(0.264, confidence="medium")


@dataclasses.dataclass(frozen=True)
class ShuaiFixedCompute(OfFlops):
    """B_opt = coefficient·C^exponent tokens; no constants were found."""

    name = "shuai_batch_at_compute"
    source = "Shuai et al. 2024 (2412.01505)"
    predicts = "batch_tokens"
    unit = "tokens"
    domain = Domain(params=(125e6, 2.6e9))

    coefficient: float = unpublished(1.0)
    exponent: float = unpublished(0.3)


@dataclasses.dataclass(frozen=True)
class StepLawBatch(OfTokens):
    """B_opt = 0.58·D^0.571 tokens, whatever the size of the model."""

    name = "step_law_batch"
    source = "Li et al. 2025 (2503.04715)"
    predicts = "batch_tokens"
    unit = "tokens"
    domain = _STEP_LAW

    coefficient: float = constant(0.58)
    exponent: float = constant(0.571)


@dataclasses.dataclass(frozen=True)
class StepLawLearningRate(Law):
    """eta = 1.79·N^-0.713·D^0.307."""

    name = "step_law_learning_rate"
    source = "Li et al. 2025 (2503.04715)"
    predicts = "learning_rate"
    unit = "of AdamW"
    domain = _STEP_LAW

    coefficient: float = constant(1.79)
    size: float = constant(-0.713, signed=True)
    data: float = constant(0.307, signed=True)

    def _value(self, *, params: Values, tokens: Values) -> Values:
        return self.coefficient * params**self.size * tokens**self.data


@dataclasses.dataclass(frozen=True)
class BergsmaTimescale(Law):
    """tau_opt = 1.084·(D/N)^-0.527, tau = B/(eta·lambda·D): AdamW's memory as a share of the run."""

    name = "bergsma_timescale"
    source = "Bergsma et al. 2025"
    predicts = "timescale"
    unit = "share of the run"

    coefficient: float = constant(1.084)
    exponent: float = constant(-0.527, signed=True)

    def _value(self, *, params: Values, tokens: Values) -> Values:
        return self.coefficient * (tokens / params) ** self.exponent

    def weight_decay(self, params: Values, tokens: Values, batch_tokens: Values, learning_rate: Values) -> Values:
        """lambda = B/(eta·D·tau_opt), the decay that goes with a batch and a peak learning rate."""
        return batch_tokens / (learning_rate * tokens * self.predict(params=params, tokens=tokens))


@dataclasses.dataclass(frozen=True)
class BergsmaCriticalBatch(Law):
    """B_crit ∝ D^0.47, from one that was measured at `reference_tokens`."""

    name = "bergsma_critical_batch"
    source = "Bergsma et al. 2025"
    predicts = "batch_tokens"
    unit = "tokens"

    exponent: float = constant(0.47)

    def _value(self, *, tokens: Values, reference_tokens: Values, reference_batch: Values) -> Values:
        return reference_batch * (tokens / reference_tokens) ** self.exponent


LAWS = (
    ShuaiFixedData(),
    ShuaiFixedCompute(),
    StepLawBatch(),
    StepLawLearningRate(),
    BergsmaTimescale(),
    BergsmaCriticalBatch(),
)
