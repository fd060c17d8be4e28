"""Objectives: pure numpy functions from raw tokens to the fields a decoder trains on.

An objective sees tokens and row keys, never models or files, so the same object serves the token store, a live
stream and a test. It says how many raw tokens a row of length L is made from (`raw_length`) and how far apart the
rows of a stream lie (`stride`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from t5x_scale.core import batch as batch_lib


class RowKeys:
    """One independent random generator per row, a pure function of (seed, global row).

    Generators are made when asked for: an objective without randomness pays nothing.
    """

    def __init__(self, seed: int, rows: np.ndarray):
        self._seed = seed % 2**64
        self._rows = np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.random.Generator:
        """The generator of the `index`-th row of this batch, at its beginning."""
        key = np.array([self._seed, self._rows[index]], np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def __iter__(self) -> Iterator[np.random.Generator]:
        return (self[index] for index in range(len(self)))


@runtime_checkable
class Objective(Protocol):
    """What the pipeline asks of an objective."""

    @property
    def name(self) -> str:
        """A name that changes whenever the objective's settings do: it is part of the data's fingerprint."""

    def raw_length(self, length: int) -> int:
        """Raw tokens needed for a row of `length` positions."""

    def stride(self, length: int) -> int:
        """Distance in the stream between the starts of neighbouring rows."""

    def __call__(self, tokens: np.ndarray, keys: RowKeys, length: int) -> dict[str, np.ndarray]:
        """Turns int32 [B, raw_length(length)] into the [B, length] fields of `core.batch`."""


@dataclasses.dataclass(frozen=True)
class CausalLm:
    """Predict every token from those before it.

    Windows are L + 1 tokens at a stride of L: neighbours share one token, so every token of the stream but its first
    is a target exactly once, and the first input of a row is simply the token before it.
    """

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


def causal_lm() -> CausalLm:
    """The plain language-modelling objective."""
    return CausalLm()
