"""Masked diffusion: restore tokens that were masked at a random rate, from both sides."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.core.mixing import GOLDEN
from t5x_scale.data.objectives.denoisers import sentinel_ids
from t5x_scale.data.objectives.interface import Example, OneToOne, Piece, RowKeys
from t5x_scale.data.objectives.randomness import draw_words, to_unit

MASK_NAMES = ("[MASK]", "<mask>", "<|mask|>")


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion(OneToOne):
    """The objective of masked diffusion models (LLaDA: Nie et al. 2025, arXiv 2502.09992, algorithm 1).

    Each row, or document, draws a rate t uniform in (min_rate, 1]; each of its tokens is masked with probability t.
    Masked tokens are learnt with weight 1 / t, the others not at all, so that the weights of a row sum to its length
    in the mean. Every position sees all others. Of a supervised document only the targets are masked.

    Position i restores token i of windows of L tokens. For a model adapted from an autoregressive one (DiffuLLaMA:
    Gong et al. 2024, arXiv 2410.17891) it predicts token i + 1: windows are then those of `CausalLm`, L + 1 tokens at
    a stride of L, whose first token is never masked and whose last is never seen; documents begin with the token
    before them.

    Attributes:
      shifted: whether position i predicts token i + 1.
      stratified: draw the rates of windows from a sequence that is even over neighbouring global rows, for less
        variance between batches. Still a function of seed and row alone.
      min_rate: the smallest rate, which bounds the weights by 1 / min_rate.
      mask_token: name of the control token that masks. None is the vocabulary's `[MASK]`, otherwise its last sentinel.
    """

    shifted: bool = False
    stratified: bool = False
    min_rate: float = 1e-3
    mask_token: str | None = None

    keeps_order: ClassVar[bool] = True
    # Of all positions.
    has_prefix: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.min_rate < 1:
            raise UserError(f"MaskedDiffusion.min_rate is {self.min_rate}: give a rate between 0 and 1")

    def check_vocabulary(self) -> None:
        self._mask_id()

    def raw_length(self, length: int) -> int:
        return length + self.shifted

    def stride(self, length: int) -> int:
        return length

    def __call__(self, tokens: np.ndarray, keys: RowKeys, length: int) -> dict[str, np.ndarray]:
        self.check_windows(tokens, length)
        words = draw_words(keys, 1 + -(-length // 2))
        rates = self._rates(_even_words(keys) if self.stratified else words[:, 0])
        is_masked = _draw_masked(words[:, 1:], rates, length)
        inputs, targets = self._lay_out(np.asarray(tokens, np.int32), is_masked)
        return {
            batch_lib.INPUT_TOKENS: np.ascontiguousarray(inputs[:, :length]),
            batch_lib.TARGET_TOKENS: np.ascontiguousarray(targets[:, -length:]),
            batch_lib.LOSS_WEIGHTS: (is_masked / rates[:, None]).astype(np.float32),
            batch_lib.PREFIX: np.ones((len(tokens), length), np.int32),
        }

    def example(self, piece: Piece, choice: int, generator: np.random.Generator) -> Example:
        del choice
        count = len(piece.tokens)
        words = draw_words([generator], 1 + -(-count // 2))
        rates = self._rates(words[:, 0])
        is_masked = _draw_masked(words[:, 1:], rates, count)
        is_masked[:, : piece.target_start] = False
        before = [piece.previous] if self.shifted else []
        tokens = np.concatenate([before, piece.tokens]).astype(np.int32)
        inputs, targets = self._lay_out(tokens[None], is_masked)
        weights = (is_masked[0] / rates).astype(np.float32)
        return Example(inputs[0, :count], targets[0, -count:], weights, prefix=count)

    def statistics(self, length: int) -> dict[str, float]:
        """Shares of a window: raw tokens used, positions that are no padding, positions that are learnt (mean)."""
        return {"raw_tokens_used": 1.0, "real_positions": 1.0, "targets": (1 + self.min_rate) / 2}

    def _rates(self, words: np.ndarray) -> np.ndarray:
        """Rates in (min_rate, 1], float64, from random words."""
        return 1 - (1 - self.min_rate) * to_unit(words)

    def _lay_out(self, tokens: np.ndarray, is_masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, as long as `tokens` [R, n + shifted]: `is_masked`, bool [R, n], masks the last n."""
        inputs = tokens.copy()
        inputs[:, int(self.shifted) :][is_masked] = self._mask_id()
        return inputs, tokens

    def _mask_id(self) -> int:
        vocabulary = self.need_vocabulary()
        names = MASK_NAMES if self.mask_token is None else (self.mask_token,)
        found = next((i for i in map(vocabulary.control_id, names) if i is not None), None)
        if found is not None:
            return found
        if self.mask_token is None and vocabulary.num_sentinels:
            return int(sentinel_ids(vocabulary)[-1])
        raise UserError(
            f"MaskedDiffusion: the vocabulary '{vocabulary.spec}' has no control token {names[0]}"
            f"{did_you_mean(names[0], MASK_NAMES)}: name one in MaskedDiffusion.mask_token"
        )


def _draw_masked(words: np.ndarray, rates: np.ndarray, count: int) -> np.ndarray:
    """Bool [R, count], True with probability rates [R]. words: uint64 [R, at least count / 2]."""
    halves = np.ascontiguousarray(words).astype("<u8", copy=False).view("<u4")[:, :count]
    return halves < (rates * 2.0**32)[:, None]


def _even_words(keys: RowKeys) -> np.ndarray:
    """uint64 [n], spread evenly over neighbouring rows, from a start that the seed decides."""
    start = np.random.Philox(key=np.array([keys.seed, 2**64 - 1], np.uint64)).random_raw()
    # 2^64 over the golden ratio: multiples of it, modulo 2^64, are spread evenly however many are taken.
    return keys.rows.astype(np.uint64) * GOLDEN + np.uint64(start)
