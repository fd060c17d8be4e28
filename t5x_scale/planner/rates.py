"""Batch size, learning rate, beta2 and warm-up, by the laws that speak about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from t5x_scale.core.errors import UserError
from t5x_scale.models.accounting import attention_flops_per_token
from t5x_scale.planner.amounts import count_text
from t5x_scale.planner.choices import Choice, ask, gather
from t5x_scale.planner.law_table import Laws, present
from t5x_scale.planner.shapes import Shape

# The first is followed: DeepSeek's decided the batches and rates of a 7B and a 67B model, 5,000 times beyond their fit.
BATCHES = ("deepseek_batch", "porian_batch", "shuai_batch", "step_law_batch")
LEARNING_RATES = ("deepseek_learning_rate", "porian_learning_rate", "step_law_learning_rate", "kaplan_learning_rate")
BETA2 = ("porian_beta2",)
GROWTH = "growth_timing"
_GROWTH_FACTOR = 4
# Where no law is at hand.
_WARMUP_STEPS = (10, 4000)
_WARMUP_SHARE = 0.1
_COSINE_FLOOR = 0.1


@dataclasses.dataclass(frozen=True)
class Training:
    """Quantities that laws of training ask about.

    Attributes:
      params: without tables.
      tokens: of the run.
      flops: without tables, with attention: DeepSeek's C = M D.
    """

    params: float
    tokens: float
    flops: float

    @classmethod
    def of(cls, shape: Shape, tokens: float, length: int) -> Training:
        """Those of a run."""
        attention = 3 * attention_flops_per_token(shape.count, shape.config, length)
        per_token = 6 * shape.non_embedding + attention
        return cls(shape.non_embedding, tokens, per_token * tokens)


def choose_batch_tokens(laws: Laws, training: Training) -> Choice:
    """Tokens of a batch, before rows are made to divide."""
    return _follow_first("batch tokens", laws, BATCHES, training)


def choose_learning_rate(laws: Laws, training: Training) -> Choice:
    """Of AdamW at its peak, to two digits."""
    choice = _follow_first("learning rate", laws, LEARNING_RATES, training)
    rate = float(f"{choice.value:.2g}")
    return dataclasses.replace(choice, value=rate, text=f"{rate:g} at its peak")


def choose_beta2(laws: Laws, batch_tokens: float) -> Choice:
    """Of AdamW: small batches are noisy, and want a longer memory."""
    opinions = tuple(ask(law, batch_tokens=batch_tokens) for law in present(laws, BETA2))
    value = opinions[0].value
    reason = f"{BETA2[0]}: at most 128 rows of 2,048 tokens want 0.99, larger batches 0.95"
    return Choice("beta2", value, f"{value:g}", reason, opinions, BETA2[0])


def choose_schedule(training: Training, params: float, steps: int, batch_tokens: float) -> Choice:
    """A warm-up, and a cosine that ends with the run."""
    warmup = round(params / batch_tokens)
    warmup = min(max(warmup, _WARMUP_STEPS[0]), _WARMUP_STEPS[1], max(1, int(_WARMUP_SHARE * steps)))
    value = {"kind": "cosine", "warmup_steps": warmup, "total_steps": steps, "floor_ratio": _COSINE_FLOOR}
    text = f"cosine to {_COSINE_FLOOR:.0%} at step {steps:,}, after {warmup:,} steps of warm-up"
    reason = (
        "a cosine longer than the run by a quarter costs loss (Hoffmann et al. 2022); a warm-up of about as many "
        "tokens as parameters, and no more than a tenth of the run (Porian et al. 2024)"
    )
    return Choice("schedule", value, text, reason)


def choose_growth(laws: Laws, training: Training, num_layers: int) -> Iterator[Choice]:
    """When a shallow model would be stacked instead; nothing where no law says so, not within the run, or where
    the layers are not four times as many as others."""
    if GROWTH not in laws or num_layers % _GROWTH_FACTOR:
        return
    asked = {"params": training.params, "flops": training.flops}
    opinions, left_out = gather([laws[GROWTH]], lambda law: ask(law, **asked))
    if left_out:
        yield Choice("growth", None, "not known", "the law that says when has no number", left_out=left_out)
    if not opinions or not 0 < opinions[0].value < training.tokens:
        return
    (opinion,) = opinions
    text = (
        f"instead of all layers at once: a quarter of them for {count_text(opinion.value)} tokens, stacked four times"
    )
    value = {"growth_factor": _GROWTH_FACTOR, "growth_tokens": opinion.value}
    reason = f"{GROWTH}; runs grown so reached the loss of 31 to 55 % longer ones (Du et al. 2024, 410M to 7B)"
    yield Choice("growth", value, text, reason, opinions, GROWTH)


def _follow_first(name: str, laws: Laws, names: tuple[str, ...], training: Training) -> Choice:
    opinions, left_out = gather(present(laws, names), lambda law: ask(law, **dataclasses.asdict(training)))
    # A law may leave the positive numbers where it extrapolates, as Kaplan's rate does.
    first = next((opinion for opinion in opinions if opinion.value > 0), None)
    if first is None:
        raise UserError(f"no law has a {name} for {training.params:.3g} parameters on {training.tokens:.3g} tokens")
    return Choice(name, first.value, count_text(first.value), f"by {first.law}", opinions, first.law, left_out)
