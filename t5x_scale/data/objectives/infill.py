"""The same held-out spans, asked for in two ways: by what stands before them, and by what stands on both sides.

Evaluation objectives. A row of text has `spans` holes of `span_length` tokens, drawn from the row's key alone, so that
both forms hold out the same tokens and score exactly them, in the same order:

  SpanFromLeft        text span text span text                                  as a causal model was trained
  SpanFromBothSides   [mode] text <s0> text <s1> text <s0> span <s1> span end   as one of span denoising was

What either form may use for a token of a span is all that stands before it in the text, earlier spans included; the
second may use the text behind it, too. The difference of their accuracies is what a model makes of the right side.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import numpy as np

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives.denoisers import sentinel_ids
from t5x_scale.data.objectives.interface import Objective, RowKeys
from t5x_scale.data.objectives.layout import Rows
from t5x_scale.data.objectives.randomness import draw_words, random_subsets
from t5x_scale.data.objectives.spans import lay_spans


@dataclasses.dataclass(frozen=True)
class _SpanInfilling(Objective):
    """What both forms share.

    Attributes:
      span_length: tokens of a span.
      spans: of a row. Between two of them, and at both ends of the row, stands at least one token that is given.
      mode: the mode token in front of the inputs, None for none. It costs a position, which is left out of the text
        in both forms.
    """

    span_length: int = 3
    spans: int = 8
    mode: str | None = "[NLU]"

    def __post_init__(self):
        for name in ("span_length", "spans"):
            if getattr(self, name) < 1:
                raise UserError(f"{type(self).__name__}.{name} is {getattr(self, name)}: at least 1")

    def raw_length(self, length: int) -> int:
        """Tokens of text in a row, for either form: what the control tokens leave. The end is predicted, never fed."""
        raw = length - (self.mode is not None) - 2 * self.spans
        fewest = self.spans * (self.span_length + 1) + 1
        if raw < fewest:
            raise UserError(
                f"a row of {length} positions is too short for {self.spans} spans of {self.span_length} tokens with "
                f"text around them: {length + fewest - raw} positions, or fewer or shorter spans"
            )
        return raw

    def statistics(self, length: int) -> dict[str, float]:
        """Shares of a window: raw tokens used, positions that are no padding, positions that are scored."""
        return {
            "raw_tokens_used": 1.0,
            "real_positions": self._positions(length) / length,
            "targets": self.spans * self.span_length / length,
        }

    @abc.abstractmethod
    def _positions(self, length: int) -> int:
        """Positions of a row that are no padding."""

    def span_starts(self, keys: RowKeys, raw_length: int) -> np.ndarray:
        """Where the spans of each row begin in its text, int64 [rows, spans], ascending.

        Uniform over all places that leave a given token on both sides of every span.
        """
        given = raw_length - self.spans * self.span_length
        # One 32-bit word for each gap between two given tokens.
        words = draw_words(keys, given // 2).astype("<u8", copy=False).view("<u4")[:, : given - 1]
        return random_subsets(words, self.spans) + 1 + self.span_length * np.arange(self.spans)


@dataclasses.dataclass(frozen=True)
class SpanFromLeft(_SpanInfilling):
    """Plain text, of whose predictions only those of the spans are scored."""

    def _positions(self, length: int) -> int:
        return self.raw_length(length) - 1

    def __call__(self, tokens: np.ndarray, keys: RowKeys, length: int) -> dict[str, np.ndarray]:
        self.check_windows(tokens, length)
        rows = Rows(len(tokens), length, full=False)
        rows.put(np.arange(len(tokens)), tokens, np.array([0]))
        del rows.fields[batch_lib.PREFIX]
        weights = rows.fields[batch_lib.LOSS_WEIGHTS]
        weights[:] = 0.0
        starts = self.span_starts(keys, tokens.shape[1])
        # Position i predicts token i + 1.
        places = starts[:, :, None] - 1 + np.arange(self.span_length)
        weights[np.arange(len(tokens))[:, None, None], places] = 1.0
        return rows.fields


@dataclasses.dataclass(frozen=True)
class SpanFromBothSides(_SpanInfilling):
    """Sentinels in the text, which is a bidirectional prefix, and behind it each sentinel with its span, and the end.

    The form of `SpanDenoiser`, but for the text: it may go on behind the last span.

    Attributes:
      in_place: as the model was trained, see `Denoising`.
    """

    in_place: bool = False

    has_prefix: ClassVar[bool] = True

    @property
    def has_positions(self) -> bool:
        return self.in_place

    def check_vocabulary(self) -> None:
        vocabulary = self.need_vocabulary()
        _ = self.separator
        if vocabulary.num_sentinels < self.spans:
            raise UserError(
                f"{type(self).__name__} needs {self.spans} sentinels, and the vocabulary '{vocabulary.spec}' has "
                f"{vocabulary.num_sentinels}: fewer spans, or a vocabulary that has them"
            )
        if self.mode is not None:
            vocabulary.mode_token_id(self.mode)

    def _positions(self, length: int) -> int:
        return length

    def __call__(self, tokens: np.ndarray, keys: RowKeys, length: int) -> dict[str, np.ndarray]:
        self.check_windows(tokens, length)
        vocabulary = self.need_vocabulary()
        starts = self.span_starts(keys, tokens.shape[1])
        sequences = lay_spans(
            tokens,
            starts,
            starts + self.span_length,
            sentinels=sentinel_ids(vocabulary),
            mode=None if self.mode is None else vocabulary.mode_token_id(self.mode),
            end=self.separator,
            in_place=self.in_place,
        )
        rows = Rows(len(tokens), length, full=True, own_positions=self.in_place)
        rows.put(np.arange(len(tokens)), *sequences)
        weights = rows.fields[batch_lib.LOSS_WEIGHTS]
        first_target = int(sequences.loss_free[0]) + 1
        weights[:, first_target - 1 :: self.span_length + 1] = 0.0
        return rows.fields
