"""What loss to expect, how far the laws disagree about it, and the band in which a run should move."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from t5x_scale.laws import Law
from t5x_scale.planner.allocations import DATA_CONSTRAINED
from t5x_scale.planner.choices import Choice, Opinion, ask, spread
from t5x_scale.planner.law_table import Laws, present

# Laws of dense models on natural text. Their corpora and tokenizers differ, and so do nats a token.
LOSSES = ("besiroglu", "chinchilla_unrounded", "chinchilla", DATA_CONSTRAINED, "kaplan_joint")
# Those on Chinchilla's or a like corpus, with a tokenizer of 32 to 50 thousand: what a band is made of.
_COMPARABLE = LOSSES[:4]
# Beyond the laws' disagreement: seeds and corpora; and above, what a learning rate costs that has not fallen yet.
_BELOW, _ABOVE = 0.03, 0.08
_POINTS = 60
# Laws say nothing about the first steps.
_FROM_SHARE = 0.02


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of laws of loss.

    Attributes:
      params: all of them.
      bare_params: those outside the tables.
      tokens: of the run.
      unique_tokens: that there are; None where they are enough.
    """

    params: float
    bare_params: float
    tokens: float
    unique_tokens: float | None = None

    @property
    def repeats(self) -> bool:
        return self.unique_tokens is not None and self.tokens > self.unique_tokens


def choose_loss(laws: Laws, question: Question, law_name: str) -> Choice:
    """The loss at the end, and what each law says."""
    opinions = tuple(_ask(laws, law, question) for law in present(laws, LOSSES))
    followed = _followed(laws, question, law_name)
    value = next(opinion.value for opinion in opinions if opinion.law == followed.name)
    values = [opinion.value for opinion in opinions]
    text = (
        f"{value:.3f} {followed.unit}; laws between {min(values):.3f} and {max(values):.3f}, {spread(values):.0%} apart"
    )
    reason = f"by {followed.name}; on another corpus or tokenizer compare shapes, not values"
    return Choice("expected loss", value, text, reason, opinions, followed.name)


def make_curve(laws: Laws, question: Question, law_name: str) -> dict[str, Any]:
    """The predicted course of the loss over tokens, L(N, D) along D, with a band, as plain lists.

    The band spans what the laws for a like corpus say, 3 % below and 8 % above: a run whose learning rate has not
    fallen yet lies above a law of finished runs.
    """
    followed = _followed(laws, question, law_name)
    if followed.confidence == "fitted":
        comparable = [followed]
    else:
        comparable = list(dict.fromkeys([followed, *present(laws, _COMPARABLE)]))
    first = math.log(question.tokens * _FROM_SHARE)
    step = (math.log(question.tokens) - first) / (_POINTS - 1)
    rows = []
    for point in range(_POINTS):
        there = dataclasses.replace(question, tokens=math.exp(first + point * step))
        said = [_ask(laws, law, there).value for law in comparable]
        rows.append((there.tokens, said[0], min(said) * (1 - _BELOW), max(said) * (1 + _ABOVE)))
    tokens, loss, low, high = (list(column) for column in zip(*rows, strict=True))
    return {"law": followed.name, "unit": followed.unit, "tokens": tokens, "loss": loss, "low": low, "high": high}


def _followed(laws: Laws, question: Question, law_name: str) -> Law:
    if question.repeats and DATA_CONSTRAINED in laws:
        return laws[DATA_CONSTRAINED]
    return laws[law_name if law_name in LOSSES else LOSSES[0]]


def _ask(laws: Laws, law: Law, question: Question) -> Opinion:
    tokens = question.tokens
    quantities = {"params": question.params if law.with_embeddings is not False else question.bare_params}
    if question.repeats:
        if law.name == DATA_CONSTRAINED:
            quantities["unique_tokens"] = question.unique_tokens
        else:
            # What knows nothing of epochs is asked about the new tokens that these are worth.
            tokens = laws[DATA_CONSTRAINED].effective_tokens(tokens, question.unique_tokens)
    return ask(law, tokens=tokens, **quantities)
