"""From joined sequences, prefix and targets in one, to the fields of a decoder."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from t5x_scale.core import batch as batch_lib
from t5x_scale.data.objectives.interface import Example


class Sequences(NamedTuple):
    """Joined sequences of one length.

    Attributes:
      tokens: int32 [R, m + 1].
      loss_free: int64 [R] or [1], how many leading predictions are not learnt.
      fed: int32 [R, m], the token fed at each position, where it is not that of the sequence.
      positions: int32 [R, m], where they are not 0, 1, 2, ….
    """

    tokens: np.ndarray
    loss_free: np.ndarray
    fed: np.ndarray | None = None
    positions: np.ndarray | None = None


def shift_sequence(sequence: np.ndarray, loss_free: int, *, loss_on_prefix: bool = False) -> Example:
    """The example of one joined sequence: position i is fed token i and predicts token i + 1.

    Args:
      sequence: int32 [m + 1].
      loss_free: how many leading predictions are not learnt. The first that is learnt is made by the position after
        them, which sees the whole prefix: the bidirectional prefix has `loss_free` + 1 positions.
      loss_on_prefix: learn those predictions too.
    """
    weights = np.ones(len(sequence) - 1, np.float32)
    if not loss_on_prefix:
        weights[:loss_free] = 0.0
    return Example(sequence[:-1], sequence[1:], weights, prefix=loss_free + 1)


class Rows:
    """The fields of a batch, filled group by group; what is not filled stays padding."""

    def __init__(self, rows: int, length: int, *, full: bool, own_positions: bool = False):
        """Args:
        rows, length: shape of the fields.
        full: every position of every row will be filled; otherwise rows carry segment ids.
        own_positions: rows carry positions, full or not.
        """
        make = np.empty if full else np.zeros
        self.fields = {
            name: make((rows, length), batch_lib.DTYPES[name])
            for name in (batch_lib.INPUT_TOKENS, batch_lib.TARGET_TOKENS, batch_lib.LOSS_WEIGHTS, batch_lib.PREFIX)
        }
        if not full:
            self.fields[batch_lib.SEGMENT_IDS] = make((rows, length), np.int32)
        if own_positions or not full:
            self.fields[batch_lib.POSITIONS] = make((rows, length), np.int32)
        self._index = np.arange(length, dtype=np.int32)

    def put(
        self,
        rows: np.ndarray,
        sequences: np.ndarray,
        loss_free: np.ndarray,
        fed: np.ndarray | None = None,
        positions: np.ndarray | None = None,
        *,
        loss_on_prefix: bool = False,
    ) -> None:
        """Lays joined sequences of one length into rows, as `shift_sequence` does.

        Args:
          rows: int64 [n].
          sequences: int32 [n, m + 1], m no more than the length of a row.
          loss_free: int64 [n] or [1], see `shift_sequence`.
          fed, positions: int32 [n, m], see `Sequences`.
          loss_on_prefix: learn the prefix too.
        """
        count = sequences.shape[1] - 1
        index = self._index[:count]
        loss_free = np.asarray(loss_free, np.int32)[:, None]
        self.fields[batch_lib.INPUT_TOKENS][rows, :count] = sequences[:, :-1] if fed is None else fed
        self.fields[batch_lib.TARGET_TOKENS][rows, :count] = sequences[:, 1:]
        self.fields[batch_lib.LOSS_WEIGHTS][rows, :count] = 1.0 if loss_on_prefix else index >= loss_free
        self.fields[batch_lib.PREFIX][rows, :count] = index <= loss_free
        if batch_lib.SEGMENT_IDS in self.fields:
            self.fields[batch_lib.SEGMENT_IDS][rows, :count] = 1
        if batch_lib.POSITIONS in self.fields:
            self.fields[batch_lib.POSITIONS][rows, :count] = index if positions is None else positions
