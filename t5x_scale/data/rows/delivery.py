"""Delivery: from (source, row of a pass) to fields. `BatchSource` says which rows a step holds, a delivery makes them.

Windows          rows cut from the concatenated stream, without padding                this file
PackDocuments    whole documents packed into rows from a recomputable plan             `data.rows.packed_delivery`
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives import CausalLm, Objective, RowKeys
from t5x_scale.data.token_store import TokenStore


class Delivery(Protocol):
    """The rows of some sources. Reads may come from any thread, in any order.

    Attributes:
      rows_per_epoch: {source: rows in one pass over it}.
      tokens_per_row: {source: mean number of positions of a row that are not padding}.
      parts: what the bytes of a row depend on beside stores, seed, objective and length, as JSON values.
    """

    rows_per_epoch: dict[str, int]
    tokens_per_row: dict[str, float]
    parts: dict[str, Any]

    def fields(
        self, names: Sequence[str], sources: np.ndarray, indices: np.ndarray, keys: RowKeys
    ) -> dict[str, np.ndarray]:
        """The fields of `core.batch`, [n, L], of n rows.

        Args:
          names: sources.
          sources: int64 [n], row i is of the source `names[sources[i]]`.
          indices: int64 [n], each in [0, rows_per_epoch of its source): which row of a pass.
          keys: n, of the rows' randomness.
        """
        ...

    def spans(self, name: str, index: int) -> list[tuple[int, int]]:
        """The ranges [first, one past the last) of a source's tokens that a row is made from."""
        ...

    def statistics(self) -> dict[str, dict[str, Any]]:
        """{source: what became of its tokens}, as JSON values."""
        ...


class Packing(Protocol):
    """How documents become rows: what a configuration names."""

    def make(
        self,
        stores: Mapping[str, TokenStore],
        objective: Objective,
        length: int,
        *,
        seed: int = 0,
        plan_dir: str | os.PathLike | None = None,
    ) -> Delivery:
        """Opens the delivery of rows of `length` positions from {source: store}; plans are kept in `plan_dir`."""
        ...


@dataclasses.dataclass(frozen=True)
class Windows:
    """Rows are equally long pieces of the concatenated documents (PaLM, section 5: nothing is padding).

    Attributes:
      attend_across_documents: whether positions see the documents before theirs in the row. If not, each row carries
        segment ids and positions, and a document that a window cuts begins anew in the next one.
    """

    attend_across_documents: bool = True

    def make(
        self,
        stores: Mapping[str, TokenStore],
        objective: Objective,
        length: int,
        *,
        seed: int = 0,
        plan_dir: str | os.PathLike | None = None,
    ) -> WindowDelivery:
        """Opens the delivery.

        Args:
          stores: {source: store}.
          objective: from tokens to fields.
          length: L, positions of a row.
          seed, plan_dir: of deliveries with a plan; windows need none.

        Raises:
          UserError: a source is shorter than a row, or the objective moves tokens so that documents cannot be told
            apart in its rows.
        """
        del seed, plan_dir
        return WindowDelivery(stores, objective, length, attend_across_documents=self.attend_across_documents)


class WindowDelivery:
    """See `Windows`; the interface is `Delivery`."""

    def __init__(
        self,
        stores: Mapping[str, TokenStore],
        objective: Objective,
        length: int,
        *,
        attend_across_documents: bool = True,
    ):
        if not attend_across_documents:
            check_keeps_order(objective)
        self._stores = dict(stores)
        self._objective = objective
        self._length = length
        self._attend_across_documents = attend_across_documents
        self._raw_length, self._stride = objective.raw_length(length), objective.stride(length)
        self.rows_per_epoch = {name: self._count_windows(name) for name in self._stores}
        # Of an objective whose rows are not all filled, such as T5's halves.
        self._fill = float(objective.statistics(length).get("real_positions", 1.0))
        self.tokens_per_row = dict.fromkeys(self._stores, length * self._fill)
        self.parts = {"packing": f"Windows(attend_across_documents={attend_across_documents})"}

    def fields(
        self, names: Sequence[str], sources: np.ndarray, indices: np.ndarray, keys: RowKeys
    ) -> dict[str, np.ndarray]:
        """As `Delivery.fields`."""
        starts = np.asarray(indices, np.int64) * self._stride
        if type(self._objective) is CausalLm:
            fields = self._causal_fields(names, sources, starts)
            about = fields[batch_lib.TARGET_TOKENS]
        else:
            raw = self._read(names, sources, starts, self._raw_length)
            fields = self._objective(raw, keys, self._length)
            about = raw[:, self._raw_length - self._length :]
        if not self._attend_across_documents:
            separators = np.array([self._stores[name].manifest.separator_id for name in names])[sources]
            fields.update(separate_documents(about, separators))
        return fields

    def _causal_fields(self, names: Sequence[str], sources: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
        """What `CausalLm` makes of the windows, without windows: reading twice is cheaper than copying twice."""
        shape = (len(starts), self._length)
        return {
            batch_lib.INPUT_TOKENS: self._read(names, sources, starts, self._length),
            batch_lib.TARGET_TOKENS: self._read(names, sources, starts + 1, self._length, again=True),
            batch_lib.LOSS_WEIGHTS: np.ones(shape, np.float32),
        }

    def _read(
        self, names: Sequence[str], sources: np.ndarray, starts: np.ndarray, length: int, *, again: bool = False
    ) -> np.ndarray:
        raw = np.empty((len(starts), length), np.int32)
        for source in np.unique(sources):
            mine = np.flatnonzero(sources == source)
            self._stores[names[source]].read_windows(starts[mine], raw, mine, again=again)
        return raw

    def spans(self, name: str, index: int) -> list[tuple[int, int]]:
        """As `Delivery.spans`: one range, the window."""
        if not 0 <= index < self.rows_per_epoch[name]:
            raise ValueError(f"row {index} of '{name}', which has {self.rows_per_epoch[name]}")
        return [(index * self._stride, index * self._stride + self._raw_length)]

    def statistics(self) -> dict[str, dict[str, Any]]:
        """As `Delivery.statistics`: {"fill": share of positions that are no padding, "rows", "tokens_left_over":
        tokens behind the last window}.
        """
        return {
            name: {
                "fill": self._fill,
                **self._objective.statistics(self._length),
                "rows": rows,
                "tokens_left_over": self._stores[name].num_tokens - (rows - 1) * self._stride - self._raw_length,
            }
            for name, rows in self.rows_per_epoch.items()
        }

    def _count_windows(self, name: str) -> int:
        store = self._stores[name]
        windows = (store.num_tokens - self._raw_length) // self._stride + 1
        if windows < 1:
            raise UserError(
                f"the source '{name}' has {store.num_tokens} tokens, fewer than the {self._raw_length} of one row: "
                "use a shorter sequence length or more data"
            )
        return windows


def check_keeps_order(objective: Objective) -> None:
    """Raises UserError if the documents of the objective's windows cannot be told apart."""
    if not objective.keeps_order:
        raise UserError(
            f"{objective.name} moves tokens, so windows cannot keep documents apart: set "
            "Windows.attend_across_documents = True, or pack documents (PackDocuments)"
        )


def separate_documents(tokens: np.ndarray, separators: np.ndarray) -> dict[str, np.ndarray]:
    """Segment ids and positions that keep the documents of windows apart.

    A separator belongs to the document it closes, and a position to the document of the token it is about: the one it
    predicts, or restores. Where inputs are targets shifted by one, the separator before a document is thus that
    document's first input, and no position sees a token of another document, as in rows of packed documents.

    Args:
      tokens: int32 [n, L], what each position is about.
      separators: int [n], the id that closes the documents of each row.

    Returns:
      `decoder_segment_ids` and `decoder_positions`, int32 [n, L].
    """
    rows, length = tokens.shape
    begins = np.zeros((rows, length), bool)
    np.equal(tokens[:, :-1], np.asarray(separators)[:, None], out=begins[:, 1:])
    index = np.arange(length, dtype=np.int32)
    firsts = np.maximum.accumulate(np.where(begins, index, 0).astype(np.int32, copy=False), axis=1)
    segments = np.cumsum(begins, axis=1, dtype=np.int32)
    segments += 1
    return {batch_lib.SEGMENT_IDS: segments, batch_lib.POSITIONS: index - firsts}
