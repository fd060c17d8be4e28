"""Fill in the middle: some texts are cut in three, and the middle is predicted last (Bavarian et al. 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives.denoisers import sentinel_ids
from t5x_scale.data.objectives.interface import Example, Objective, Piece, RowKeys
from t5x_scale.data.objectives.randomness import draw_words, to_below, to_unit

FIM_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
FEWEST_TOKENS = 3


@dataclasses.dataclass(frozen=True)
class FillInTheMiddle(Objective):
    """Causal language modelling in which a share of the texts is rearranged (arXiv 2207.14255).

      PSM   <PRE> prefix <SUF> suffix <MID> middle end
      SPM   <PRE> <SUF> suffix <MID> prefix middle end      (the form that shares its parts with PSM)

    The two cuts are uniform over all places between tokens, so that any part may be empty. All tokens are learnt.

    Windows are those of `CausalLm`, L + 1 tokens at a stride of L. A rearranged row spends 4 positions on the three
    control tokens and the end; the 4 tokens of text that no longer fit, from its front or from its back, are left out.

    Documents keep all their tokens and grow by 3 positions: the separator that ends a document moves behind the middle.
    A piece that ends inside a long document has none, and ends with its middle. Documents of fewer than 3 tokens stay
    as they are.

    Attributes:
      rate: share of the rows, or documents, that are rearranged.
      spm_rate: share of those that are in SPM order.
      tokens: names of <PRE>, <SUF> and <MID>. None is `<|fim_prefix|>`, `<|fim_suffix|>`, `<|fim_middle|>` where the
        vocabulary has them, otherwise its last three sentinels, in this order.
    """

    rate: float = 0.5
    spm_rate: float = 0.5
    tokens: Sequence[str] | None = None

    def __post_init__(self):
        for name in ("rate", "spm_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"FillInTheMiddle.{name} is {getattr(self, name)}: give a share from 0 to 1")
        if self.tokens is not None:
            object.__setattr__(self, "tokens", tuple(self.tokens))
            if len(self.tokens) != 3:
                raise UserError(f"FillInTheMiddle.tokens must name three tokens, not {list(self.tokens)}")

    # Rows that are not rearranged would do, but the others would not.
    keeps_order: ClassVar[bool] = False

    def check_vocabulary(self) -> None:
        _ = self.separator, self._ids()

    def raw_length(self, length: int) -> int:
        if length < 4 + FEWEST_TOKENS:
            raise UserError(f"FillInTheMiddle needs rows of at least {4 + FEWEST_TOKENS} positions, not {length}")
        return length + 1

    def stride(self, length: int) -> int:
        return length

    def __call__(self, tokens: np.ndarray, keys: RowKeys, length: int) -> dict[str, np.ndarray]:
        self.check_windows(tokens, length)
        words = draw_words(keys, 5)
        sequences = np.array(tokens, np.int32)
        for row in np.flatnonzero(to_unit(words[:, 0]) < self.rate):
            first = 4 * int(to_below(words[row, 4], 2))
            text = tokens[row, first + 1 : first + length - 3]
            sequences[row, 0] = tokens[row, first]
            sequences[row, 1:] = self._rearrange(text, [self.separator], words[row, 1:4])
        return {
            batch_lib.INPUT_TOKENS: np.ascontiguousarray(sequences[:, :-1]),
            batch_lib.TARGET_TOKENS: np.ascontiguousarray(sequences[:, 1:]),
            batch_lib.LOSS_WEIGHTS: np.ones((len(tokens), length), np.float32),
        }

    def packed_length(self, num_tokens: np.ndarray, choices: np.ndarray) -> np.ndarray:
        num_tokens = np.asarray(num_tokens, np.int64)
        return num_tokens + 3 * self._is_rearranged(num_tokens, np.asarray(choices, np.uint64))

    def longest_piece(self, length: int) -> int:
        if length <= 3:
            raise UserError(f"FillInTheMiddle needs rows of more than 3 positions, not {length}")
        return length - 3

    def longest_pieces(self, length: int, choices: np.ndarray) -> np.ndarray:
        is_chosen = to_unit(np.asarray(choices, np.uint64)) < self.rate
        return np.where(is_chosen, self.longest_piece(length), length)

    def example(self, piece: Piece, choice: int, generator: np.random.Generator) -> Example:
        sequence = piece.tokens
        if self._is_rearranged(np.array([len(sequence)]), np.array([choice], np.uint64))[0]:
            is_end = piece.tokens[-1] == self.separator
            text, end = (piece.tokens[:-1], piece.tokens[-1:]) if is_end else (piece.tokens, [])
            sequence = self._rearrange(text, end, draw_words([generator], 3)[0])
        sequence = np.concatenate([[piece.previous], sequence]).astype(np.int32)
        return Example(sequence[:-1], sequence[1:], np.ones(len(sequence) - 1, np.float32))

    def statistics(self, length: int) -> dict[str, float]:
        """Shares of a window: raw tokens used, positions that are no padding, positions that are learnt."""
        return {"raw_tokens_used": 1 - 4 * self.rate / length, "real_positions": 1.0, "targets": 1.0}

    def _is_rearranged(self, num_tokens: np.ndarray, choices: np.ndarray) -> np.ndarray:
        return (to_unit(choices) < self.rate) & (num_tokens >= FEWEST_TOKENS)

    def _rearrange(self, text: np.ndarray, end: Sequence[int], words: np.ndarray) -> np.ndarray:
        """The text in PSM or SPM order, three tokens and `end` longer. words: uint64 [3]."""
        pre, suf, mid = self._ids()
        first, second = np.sort(to_below(words[:2], len(text) + 1))
        prefix, middle, suffix = text[:first], text[first:second], text[second:]
        if to_unit(words[2]) < self.spm_rate:
            return np.concatenate([[pre, suf], suffix, [mid], prefix, middle, end]).astype(np.int32)
        return np.concatenate([[pre], prefix, [suf], suffix, [mid], middle, end]).astype(np.int32)

    def _ids(self) -> tuple[int, int, int]:
        """Ids of <PRE>, <SUF> and <MID>."""
        vocabulary = self.need_vocabulary()
        names = self.tokens or FIM_TOKENS
        found = [vocabulary.control_id(name) for name in names]
        if None not in found:
            return tuple(found)
        if self.tokens is None and vocabulary.num_sentinels >= 3:
            return tuple(sentinel_ids(vocabulary)[-3:].tolist())
        missing = names[found.index(None)]
        raise UserError(
            f"FillInTheMiddle: the vocabulary '{vocabulary.spec}' has no control token {missing}: name three in "
            "FillInTheMiddle.tokens, or use a vocabulary with three sentinels"
        )
