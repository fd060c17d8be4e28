"""What loss to expect, how far the laws disagree about it, and the band in which a run should move."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from t5x_scale.core.errors import UserError
from t5x_scale.laws import Law
from t5x_scale.laws.kaplan import KaplanLearningCurve
from t5x_scale.planner.allocations import DATA_CONSTRAINED
from t5x_scale.planner.choices import Choice, Opinion, ask, gather, spread
from t5x_scale.planner.law_table import Laws, is_fitted, present

# Laws of dense models on natural text, as they are asked first. Corpora and tokenizers differ, and so do nats a token.
LOSSES = ("besiroglu", "chinchilla_unrounded", "chinchilla", DATA_CONSTRAINED)
# What speaks of another thing than the end of one pass: shown, never followed or compared.
_OTHERS = {
    "kaplan_joint": "where it is lowest on a data set of so many tokens, not after one pass",
    "kaplan_learning_curve": "after so many steps, under a schedule of a fixed length",
}
# Beyond the laws' disagreement: seeds and corpora; and above, what a learning rate costs that has not fallen yet.
_BELOW, _ABOVE = 0.03, 0.08
# Above the largest models of every fit only the more recent laws are compared.
_LARGE = 9e9
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
      vocab_size: of the model.
      unique_tokens: that there are; None where they are enough.
      steps, batch_tokens: of the run; None where they are not known.
    """

    params: float
    bare_params: float
    tokens: float
    vocab_size: int
    unique_tokens: float | None = None
    steps: int | None = None
    batch_tokens: float | None = None

    @property
    def guessing(self) -> float:
        """The loss of a model that has learned nothing."""
        return math.log(self.vocab_size)

    @property
    def repeats(self) -> bool:
        return self.unique_tokens is not None and self.tokens > self.unique_tokens


def choose_loss(laws: Laws, question: Question, law_name: str) -> Choice:
    """The loss at the end, and what each law says."""
    speaking = (law for law in present(laws, (*LOSSES, *_OTHERS)) if _can_speak(law, question))
    opinions, left_out = gather(speaking, lambda law: _ask(laws, law, question))
    followed = _followed(laws, question, law_name)
    value = next(opinion.value for opinion in opinions if opinion.law == followed.name)
    reason = f"by {followed.name}; on another corpus or tokenizer compare shapes, not values"
    if law_name not in LOSSES:
        reason += f" ({law_name} says nothing of the loss)"
    if value >= question.guessing:
        text = f"at most {question.guessing:.3f}, that of guessing: no law speaks of so small a run"
        reason = f"{followed.name} promises {value:.3f}, and guessing among {question.vocab_size:,} has their logarithm"
        return Choice("expected loss", question.guessing, text, reason, opinions, followed.name, left_out)
    comparable = [opinion for opinion in opinions if opinion.law not in _OTHERS and opinion.value < question.guessing]
    text = f"{value:.3f} {followed.unit}; {_between([opinion.value for opinion in comparable])}"
    return Choice("expected loss", value, text, reason, opinions, followed.name, left_out)


def _between(values: Sequence[float]) -> str:
    if len(values) == 1:
        return "no other law says more than guessing does"
    return f"laws between {min(values):.3f} and {max(values):.3f}, {spread(values):.0%} apart"


def make_curve(laws: Laws, question: Question, law_name: str) -> dict[str, Any]:
    """The predicted course of the loss over tokens, L(N, D) along D, with a band, as plain lists.

    The band spans what the laws say that speak about runs of this size, and 3 % below and 8 % above: a run whose
    learning rate has not fallen yet lies above a law of finished runs.
    """
    followed = _followed(laws, question, law_name)
    comparable = [followed]
    if not is_fitted(followed):
        comparable += [law for law in present(laws, LOSSES) if law != followed and _agrees(laws, law, question)]
    # Where the law says how far off it was on runs that it had not seen, three times that.
    off = 3 * getattr(followed, "held_out_error", 0.0)
    below, above = max(_BELOW, off), max(_ABOVE, off)
    first = math.log(question.tokens * _FROM_SHARE)
    step = (math.log(question.tokens) - first) / (_POINTS - 1)
    rows = []
    for point in range(_POINTS):
        there = dataclasses.replace(question, tokens=math.exp(first + point * step))
        # Of the first steps a law may have no number where it has one of the last.
        found, _ = gather(comparable, lambda law, there=there: _ask(laws, law, there))
        said = [min(opinion.value, question.guessing) for opinion in found]
        if found and found[0].law == followed.name:
            rows.append((there.tokens, said[0], min(said) * (1 - below), max(said) * (1 + above)))
    tokens, loss, low, high = (list(column) for column in zip(*rows, strict=True))
    about = {"law": followed.name, "unit": followed.unit, "outside": list(_ask(laws, followed, question).outside)}
    return {**about, "tokens": tokens, "loss": loss, "low": low, "high": high}


def _followed(laws: Laws, question: Question, law_name: str) -> Law:
    """For repeated data the law that knows of it, unless the one that is asked for was fitted to one's own runs.

    It does not change with the budget, laws of several corpora being no one curve, unless it has no number.

    Raises:
      UserError: no law has one.
    """
    first = laws[law_name if law_name in LOSSES else LOSSES[0]]
    if question.repeats and not is_fitted(first):
        first = laws[DATA_CONSTRAINED]
    wanted = (first, *(law for law in present(laws, LOSSES) if law != first))
    speaking, left_out = gather(wanted, lambda law: _ask(laws, law, question))
    if not speaking:
        raise UserError(f"no law expects a loss here: {left_out[0]}")
    return laws[speaking[0].law]


def _agrees(laws: Laws, law: Law, question: Question) -> bool:
    """Whether a law speaks about such runs: it was fitted on some, or reaches as far as any does."""
    found, _ = gather([law], lambda law: _ask(laws, law, question))
    reaches = law.with_embeddings is True and question.params > _LARGE
    return any(reaches or not said.outside for said in found)


def _can_speak(law: Law, question: Question) -> bool:
    """A law of steps knows of no repeated data."""
    if not isinstance(law, KaplanLearningCurve):
        return True
    return question.steps is not None and question.batch_tokens is not None and not question.repeats


def _ask(laws: Laws, law: Law, question: Question) -> Opinion:
    tokens = question.tokens
    quantities = {"params": question.params if law.with_embeddings is not False else question.bare_params}
    if question.repeats:
        if law.name == DATA_CONSTRAINED:
            quantities["unique_tokens"] = question.unique_tokens
        else:
            # What knows nothing of epochs is asked about the new tokens that these are worth.
            tokens = laws[DATA_CONSTRAINED].effective_tokens(tokens, question.unique_tokens)
    if isinstance(law, KaplanLearningCurve):
        quantities["steps"] = law.fewest_steps(question.bare_params, question.steps, question.batch_tokens)
    opinion = ask(law, tokens=tokens, **quantities)
    if law.name in _OTHERS:
        opinion = dataclasses.replace(opinion, unit=f"{opinion.unit}, {_OTHERS[law.name]}")
    if opinion.value < question.guessing:
        return opinion
    line = f"it promises less than guessing, which has ln({question.vocab_size}) = {question.guessing:.2f}"
    return dataclasses.replace(opinion, outside=(*opinion.outside, line))
