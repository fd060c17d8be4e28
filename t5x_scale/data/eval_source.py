"""Evaluation batches: one pass over a split, every target once."""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np

from t5x_scale.core.batch import LOSS_WEIGHTS, check_batch
from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives import Objective, RowKeys
from t5x_scale.data.order import order_key, permute, to_rows
from t5x_scale.data.rows.delivery import Packing, Windows, check_keeps_order, separate_documents
from t5x_scale.data.store_check import StoreCheck
from t5x_scale.data.token_store import TokenStore


class EvalSource:
    """The batches of one pass over a store, all of one shape.

    The last batch is filled up with empty rows, whose loss weights are 0.

    Attributes:
      name: of the source.
      num_batches: batches of the pass.
      batch_size: rows of the global batch.
      num_rows: rows that hold tokens.
    """

    def __init__(
        self,
        name: str,
        store: TokenStore,
        objective: Objective,
        *,
        length: int,
        batch_size: int,
        packing: Packing = Windows(),
        plan_dir: str | os.PathLike | None = None,
        seed: int = 0,
        max_batches: int | None = None,
        check: StoreCheck | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Args:
          store: of the split.
          objective, length, packing, plan_dir: as in training.
          batch_size: rows of the global batch.
          seed: of the rows' randomness, where the objective has any.
          max_batches: ends the pass early.
          check: of the store, whose findings end the run.
          process_index, process_count: this host delivers the rows of its place of so many.

        Raises:
          UserError: the split is shorter than one row, or a batch does not divide among the hosts.
        """
        if batch_size % process_count:
            raise UserError(f"the batch size {batch_size} does not divide among {process_count} processes")
        self.name, self.store, self.batch_size = name, store, batch_size
        self._seed, self._process = seed, (process_index, process_count)
        self._check = check
        self._pass: _Pass
        if isinstance(packing, Windows):
            self._pass = _WindowPass(name, store, objective, length, packing.attend_across_documents)
        else:
            self._pass = _PackedPass(name, store, objective, length, packing, seed, plan_dir)
        self.num_rows = self._pass.num_rows
        self.num_batches = -(-self.num_rows // batch_size)
        if max_batches is not None and max_batches < self.num_batches:
            self.num_batches = max_batches

    def batch(self, index: int, rows: np.ndarray | slice | None = None) -> dict[str, np.ndarray]:
        """Batch `index` of the pass: the fields of `core.batch`, each [rows, L]; this host's rows when None.

        Raises:
          IndexError: `index` is not in [0, num_batches).
          UserError: the store is damaged.
        """
        if self._check is not None:
            self._check.raise_if_damaged()
        if not 0 <= index < self.num_batches:
            raise IndexError(f"batch {index} of {self.num_batches}")
        if rows is None:
            place, count = self._process
            size = self.batch_size // count
            rows = slice(place * size, (place + 1) * size)
        numbers = index * self.batch_size + to_rows(rows, self.batch_size)
        fields = self._pass.fields(np.minimum(numbers, self.num_rows - 1), RowKeys(self._seed, numbers))
        fields[LOSS_WEIGHTS][numbers >= self.num_rows] = 0.0
        check_batch(fields)
        return fields


class _Pass(Protocol):
    """The rows of a split, in the order of a pass."""

    num_rows: int

    def fields(self, numbers: np.ndarray, keys: RowKeys) -> dict[str, np.ndarray]:
        """The rows `numbers`, int64 [n], each in [0, num_rows)."""
        ...


class _WindowPass:
    """Windows in order. Where every position predicts the next token from those before it, the last row may be less
    than full: it is padded. Of objectives that move tokens, or see them from both sides, padding would come between:
    a row of theirs that would not be full is left out.
    """

    def __init__(self, name: str, store: TokenStore, objective: Objective, length: int, attend_across_documents: bool):
        self._store, self._objective, self._length = store, objective, length
        self._separate = not attend_across_documents
        if self._separate:
            check_keeps_order(objective)
        self._raw_length, self._stride = objective.raw_length(length), objective.stride(length)
        self._full_rows = max((store.num_tokens - self._raw_length) // self._stride + 1, 0)
        is_causal = objective.keeps_order and not objective.has_prefix
        may_end = is_causal and self._raw_length == self._stride + 1 == length + 1
        self._tail = store.num_tokens - 1 - self._full_rows * self._stride if may_end else 0
        self.num_rows = self._full_rows + (self._tail > 0)
        if not self.num_rows:
            raise UserError(f"the evaluation split of '{name}' has {store.num_tokens} tokens, fewer than one row needs")

    def fields(self, numbers: np.ndarray, keys: RowKeys) -> dict[str, np.ndarray]:
        raw = np.zeros((len(numbers), self._raw_length), np.int32)
        full = np.flatnonzero(numbers < self._full_rows)
        self._store.read_windows(numbers[full] * self._stride, raw, full)
        last = np.flatnonzero(numbers == self._full_rows)
        if len(last):
            raw[last, : self._tail + 1] = self._store.tokens(self._full_rows * self._stride, self._store.num_tokens)
        fields = self._objective(raw, keys, self._length)
        fields[LOSS_WEIGHTS][last, self._tail :] = 0.0
        if self._separate:
            separators = np.full(len(raw), self._store.manifest.separator_id)
            fields.update(separate_documents(raw[:, self._raw_length - self._length :], separators))
        return fields


class _PackedPass:
    """Packed rows, in an order that mixes long and short documents: a part of a pass stands for the whole."""

    def __init__(
        self,
        name: str,
        store: TokenStore,
        objective: Objective,
        length: int,
        packing: Packing,
        seed: int,
        plan_dir: str | os.PathLike | None,
    ):
        self._name, self._key = name, order_key(0, 0, name)
        self._delivery = packing.make({name: store}, objective, length, seed=seed, plan_dir=plan_dir)
        self.num_rows = self._delivery.rows_per_epoch[name]

    def fields(self, numbers: np.ndarray, keys: RowKeys) -> dict[str, np.ndarray]:
        indices = permute(numbers, self.num_rows, self._key)
        return self._delivery.fields([self._name], np.zeros(len(numbers), np.int64), indices, keys)
