"""Figures of an evaluation, row by row, and what may be concluded from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from t5x_scale.core.errors import UserError

_FIELDS = ("cross_entropy", "correct", "weight")
_SAMPLES_AT_ONCE = 500


@dataclasses.dataclass(frozen=True, eq=False)
class RowSums:
    """Sums over the scored tokens of each row of an evaluation, in the order of its pass.

    Attributes:
      cross_entropy: in nats, float64 [R].
      correct: tokens whose target had the largest logit, float64 [R].
      weight: of all scored tokens, float64 [R].
      tokens: a digest of what was scored: two with the same answered the same questions.
    """

    cross_entropy: np.ndarray
    correct: np.ndarray
    weight: np.ndarray
    tokens: str

    @property
    def loss(self) -> float:
        """Nats a token."""
        return float(self.cross_entropy.sum() / self.weight.sum())

    @property
    def accuracy(self) -> float:
        """Share of the tokens."""
        return float(self.correct.sum() / self.weight.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return {name: getattr(self, name).tolist() for name in _FIELDS} | {"tokens": self.tokens}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(*(np.array(values[name], np.float64) for name in _FIELDS), values["tokens"])

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The rows of several passes, one after another."""
        arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS)
        return cls(*arrays, " ".join(part.tokens for part in parts))


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate, and the bounds between which it lies with some confidence."""

    value: float
    low: float
    high: float

    @property
    def side(self) -> str:
        """Where it lies, seen from 0: `above`, `below`, or `not told apart from` it."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "not told apart from"

    def render(self) -> str:
        """`value [low, high]`, signed."""
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def by_objective(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, RowSums]]:
    """`{objective: {task: sums}}` of `{"task.objective": plain values}`, the tasks in the order of their names."""
    found: dict[str, dict[str, RowSums]] = {}
    for name in sorted(rows):
        task, _, objective = name.rpartition(".")
        found.setdefault(objective, {})[task] = RowSums.from_dict(rows[name])
    return found


def mixture_loss(rows: Mapping[str, RowSums], shares: Mapping[str, float]) -> float:
    """Nats a token of a mixture, by the losses of its tasks and their shares of its tokens, in any unit."""
    return sum(share * rows[task].loss for task, share in shares.items()) / sum(shares.values())


def accuracy_gain(
    after: RowSums, before: RowSums, *, confidence: float = 0.95, samples: int = 10_000, block: int = 1, seed: int = 0
) -> Interval:
    """How much more accurate `after` is than `before` on the same tokens, by a paired bootstrap over rows.

    Tokens of a row depend on one another, and both answers to a row on how hard it is: so whole rows are drawn, with
    replacement, and for both sides the same ones (Efron and Tibshirani 1993, chapters 8 and 13; percentiles).

    Args:
      after, before: two evaluations of the same tokens.
      confidence: of the interval, in (0, 1).
      samples: how often to draw.
      block: rows that are drawn together: neighbours come from the same document.
      seed: of the draws.

    Raises:
      UserError: they did not score the same tokens.
    """
    if after.tokens != before.tokens or not np.array_equal(after.weight, before.weight):
        raise UserError(
            "the two evaluations did not score the same tokens: compare the same split, spans, length, seed"
        )
    columns = np.stack([after.correct - before.correct, after.weight])
    totals = np.add.reduceat(columns, np.arange(0, columns.shape[1], block), axis=1)
    blocks = totals.shape[1]
    generator = np.random.default_rng(seed)
    gains = np.empty(samples)
    for start in range(0, samples, _SAMPLES_AT_ONCE):
        count = min(_SAMPLES_AT_ONCE, samples - start)
        drawn = totals[:, generator.integers(0, blocks, (count, blocks))].sum(axis=2)
        gains[start : start + count] = drawn[0] / drawn[1]
    tail = (1 - confidence) / 2
    low, high = np.quantile(gains, [tail, 1 - tail])
    value = totals[0].sum() / totals[1].sum()
    return Interval(float(value), float(low), float(high))
