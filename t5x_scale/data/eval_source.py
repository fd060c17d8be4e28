"""Evaluation batches: one pass over a split, in order, every target once."""

from __future__ import annotations

import numpy as np

from t5x_scale.core.batch import LOSS_WEIGHTS, check_batch
from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives import Objective, RowKeys
from t5x_scale.data.order import to_rows
from t5x_scale.data.token_store import TokenStore


class EvalSource:
    """Sequential batches of one store, all of one shape.

    The last row is filled up with padding, and the last batch with empty rows; both have loss weight 0. Where an
    objective's rows are not simply shifted windows, a last row that would not be full is left out.

    Attributes:
      name: of the source.
      num_batches: batches of the pass.
      batch_size: rows of the global batch.
      num_rows: rows that hold tokens.
      num_targets: sum of the loss weights of the pass, for objectives that weigh every position 1.
    """

    def __init__(
        self,
        name: str,
        store: TokenStore,
        objective: Objective,
        *,
        length: int,
        batch_size: int,
        seed: int = 0,
        max_batches: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Args:
          store: of the split.
          objective, length: as in training.
          batch_size: rows of the global batch.
          seed: of the rows' randomness, where the objective has any.
          max_batches: ends the pass early.
          process_index, process_count: this host delivers the rows of its place of so many.

        Raises:
          UserError: the split is shorter than one row, or a batch does not divide among the hosts.
        """
        if batch_size % process_count:
            raise UserError(f"the batch size {batch_size} does not divide among {process_count} processes")
        self.name = name
        self.store = store
        self._objective, self._length, self.batch_size, self._seed = objective, length, batch_size, seed
        self._process = (process_index, process_count)
        self._raw_length, self._stride = objective.raw_length(length), objective.stride(length)
        self._full_rows = max((store.num_tokens - self._raw_length) // self._stride + 1, 0)
        # Targets of the row that is not full. Known only where targets are the raw tokens shifted by one.
        shifted = self._raw_length == self._stride + 1 == length + 1
        self._tail = store.num_tokens - 1 - self._full_rows * self._stride if shifted else 0
        self.num_rows = self._full_rows + (self._tail > 0)
        if not self.num_rows:
            raise UserError(f"the evaluation split of '{name}' has {store.num_tokens} tokens, fewer than one row needs")
        self.num_batches = -(-self.num_rows // batch_size)
        if max_batches is not None and max_batches < self.num_batches:
            self.num_batches = max_batches
        rows = min(self.num_rows, self.num_batches * batch_size)
        self.num_targets = min(rows, self._full_rows) * length + (self._tail if rows > self._full_rows else 0)

    def batch(self, index: int, rows: np.ndarray | slice | None = None) -> dict[str, np.ndarray]:
        """Batch `index` of the pass: the fields of `core.batch`, each [rows, L]; this host's rows when None.

        Raises:
          IndexError: `index` is not in [0, num_batches).
        """
        if not 0 <= index < self.num_batches:
            raise IndexError(f"batch {index} of {self.num_batches}")
        if rows is None:
            place, count = self._process
            size = self.batch_size // count
            rows = slice(place * size, (place + 1) * size)
        numbers = index * self.batch_size + to_rows(rows, self.batch_size)
        raw = np.zeros((len(numbers), self._raw_length), np.int32)
        full = np.flatnonzero(numbers < self._full_rows)
        self.store.read_windows(numbers[full] * self._stride, raw, full)
        last = np.flatnonzero((numbers == self._full_rows) & (self._tail > 0))
        if len(last):
            start = self._full_rows * self._stride
            raw[last[0], : self._tail + 1] = self.store.tokens(start, self.store.num_tokens)
        fields = self._objective(raw, RowKeys(self._seed, numbers), self._length)
        fields[LOSS_WEIGHTS][last, self._tail :] = 0.0
        fields[LOSS_WEIGHTS][numbers >= self.num_rows] = 0.0
        check_batch(fields)
        return fields
