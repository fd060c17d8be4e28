"""Causal language modelling: predict every token from those before it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from t5x_scale.core import batch as batch_lib
from t5x_scale.data.objectives.interface import Example, OneToOne, Piece, RowKeys


@dataclasses.dataclass(frozen=True)
class CausalLm(OneToOne):
    """Predict every token from those before it.

    Windows are L + 1 tokens at a stride of L: neighbours share one token, so every token of the stream but its first
    is a target exactly once, and the first input of a row is simply the token before it.
    """

    keeps_order: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "causal_lm"

    def raw_length(self, length: int) -> int:
        return length + 1

    def stride(self, length: int) -> int:
        return length

    def __call__(self, tokens: np.ndarray, keys: RowKeys, length: int) -> dict[str, np.ndarray]:
        del keys
        if tokens.shape[1] != length + 1:
            raise ValueError(
                f"causal_lm needs windows of {length + 1} tokens for length {length}, got {tokens.shape[1]}"
            )
        return {
            batch_lib.INPUT_TOKENS: np.ascontiguousarray(tokens[:, :-1], np.int32),
            batch_lib.TARGET_TOKENS: np.ascontiguousarray(tokens[:, 1:], np.int32),
            batch_lib.LOSS_WEIGHTS: np.ones((len(tokens), length), np.float32),
        }

    def example(self, piece: Piece, choice: int, generator: np.random.Generator) -> Example:
        del choice, generator
        inputs = np.concatenate([[piece.previous], piece.tokens[:-1]]).astype(np.int32)
        return Example(inputs, piece.tokens.astype(np.int32), np.ones(len(inputs), np.float32))
