"""Prefix language modelling: a prefix that sees itself in both directions, and the text that follows it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives.interface import Example, OneToOne, Piece, RowKeys
from t5x_scale.data.objectives.layout import Rows, shift_sequence
from t5x_scale.data.objectives.randomness import draw_words, to_below


@dataclasses.dataclass(frozen=True)
class PrefixLm(OneToOne):
    """Attend to a prefix in both directions and predict what follows (Raffel et al. 2020, section 3.2.3).

    Rows are cut like those of `CausalLm`, L + 1 tokens at a stride of L: position i is fed token i and predicts token
    i + 1. Say the first s predictions are not learnt. The first that is learnt, number s, is made by position s,
    which must see the whole prefix: positions 0 … s, s + 1 of them, form the bidirectional prefix, and the tokens
    they are fed, 0 … s, contain none that is learnt, s + 1 … L. So the prefix in the mask has one position more than
    there are predictions without loss. (T5 packs the same with a zero in place of token 0.)

    Attributes:
      split: "uniform", s uniform in [1, L - min_targets], or the share of predictions that are not learnt, fixed.
      min_targets: fewest predictions to learn in a row or document; a document has one less where it is that short.
      loss_on_prefix: learn the prefix too. Its positions see their own targets, so that they only learn to copy: for
        comparison with runs that did so.
    """

    split: str | float = "uniform"
    min_targets: int = 1
    loss_on_prefix: bool = False

    keeps_order: ClassVar[bool] = True
    has_prefix: ClassVar[bool] = True

    def __post_init__(self):
        is_share = isinstance(self.split, (int, float)) and 0 < self.split < 1
        if self.split != "uniform" and not is_share:
            raise UserError(f"PrefixLm.split is {self.split!r}: give 'uniform' or a share between 0 and 1")
        if self.min_targets < 1:
            raise UserError(f"PrefixLm.min_targets is {self.min_targets}: at least 1")

    def raw_length(self, length: int) -> int:
        if length <= self.min_targets:
            raise UserError(
                f"PrefixLm with min_targets = {self.min_targets} needs rows of more than {length} positions"
            )
        return length + 1

    def stride(self, length: int) -> int:
        return length

    def __call__(self, tokens: np.ndarray, keys: RowKeys, length: int) -> dict[str, np.ndarray]:
        self.check_windows(tokens, length)
        rows = Rows(len(tokens), length, full=True)
        words = draw_words(keys, 1)[:, 0]
        loss_free = self._loss_free(np.full(len(tokens), length), words)
        rows.put(np.arange(len(tokens)), tokens, loss_free, loss_on_prefix=self.loss_on_prefix)
        return rows.fields

    def example(self, piece: Piece, choice: int, generator: np.random.Generator) -> Example:
        del choice
        sequence = np.concatenate([[piece.previous], piece.tokens]).astype(np.int32)
        loss_free = self._loss_free(np.array([len(piece.tokens)]), draw_words([generator], 1)[:, 0])
        return shift_sequence(sequence, int(loss_free[0]), loss_on_prefix=self.loss_on_prefix)

    def statistics(self, length: int) -> dict[str, float]:
        """Shares of a window: raw tokens used, positions that are no padding, positions that are learnt."""
        most = length - self.min_targets
        loss_free = (1 + most) / 2 if self.split == "uniform" else min(max(round(self.split * length), 1), most)
        learnt = 1.0 if self.loss_on_prefix else 1 - loss_free / length
        return {"raw_tokens_used": 1.0, "real_positions": 1.0, "targets": learnt}

    def _loss_free(self, predictions: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Predictions that are not learnt, of so many; a single one is always learnt."""
        most = np.maximum(predictions - self.min_targets, np.minimum(predictions - 1, 1))
        if self.split == "uniform":
            return uniform_split(np.minimum(most, 1), most, words)
        return np.clip(np.round(self.split * predictions).astype(np.int64), np.minimum(most, 1), most)


def uniform_split(fewest: np.ndarray, most: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Uniform integers in [fewest, most], int64, from random words."""
    return fewest + to_below(words, most - fewest + 1)
