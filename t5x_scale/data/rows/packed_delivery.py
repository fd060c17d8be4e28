"""Packed documents: rows of whole documents from a recomputable plan, each a segment of its own."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.data.objectives import CausalLm, Example, Objective, Piece, RowKeys
from t5x_scale.data.rows.packing import FITS, Fit, assemble
from t5x_scale.data.rows.packing_plan import PackingPlan, Pieces, PlanSettings
from t5x_scale.data.rows.packing_plan_files import load_plan
from t5x_scale.data.token_store import TokenStore

LONG_DOCUMENTS = ("split", "drop")


@dataclasses.dataclass(frozen=True)
class PackDocuments:
    """Rows are whole documents, packed by length; the rest of a row is padding.

    Attributes:
      fit: "best" (best-fit decreasing) or "first" (first fit); see `data.rows.packing`.
      attend_across_documents: whether positions see the documents before theirs in the row. If not, rows carry segment
        ids and positions.
      long_documents: what becomes of a document that no row holds: "split" it, or "drop" it and count it. None splits
        where the objective can make something of a part.
    """

    fit: Fit = "best"
    attend_across_documents: bool = False
    long_documents: str | None = None

    def make(
        self,
        stores: Mapping[str, TokenStore],
        objective: Objective,
        length: int,
        *,
        seed: int = 0,
        plan_dir: str | os.PathLike | None = None,
    ) -> PackedDelivery:
        """Opens the delivery; makes the plans that `plan_dir` lacks, about a second for a million documents.

        Args:
          stores: {source: store}.
          objective: from pieces to sequences.
          length: L, positions of a row.
          seed: of whatever is random in the length of a sequence, and of which documents meet in a row.
          plan_dir: where plans are kept, local or `gs://`; None keeps them in memory.

        Raises:
          UserError: a setting is unknown or the objective cannot serve it, or every document of a source was left out.
        """
        return PackedDelivery(self.checked(objective), stores, objective, length, seed=seed, plan_dir=plan_dir)

    def checked(self, objective: Objective) -> PackDocuments:
        """These settings, with `long_documents` decided.

        Raises:
          UserError: a setting is unknown, or the objective cannot serve it.
        """
        check_choice("PackDocuments.fit", self.fit, FITS)
        policy = self.long_documents
        if policy is None:
            policy = "split" if objective.splits_documents else "drop"
        check_choice("PackDocuments.long_documents", policy, LONG_DOCUMENTS)
        if policy == "split" and not objective.splits_documents:
            raise UserError(f"{objective.name} needs whole documents: set PackDocuments.long_documents = 'drop'")
        if self.attend_across_documents and objective.has_prefix:
            raise UserError(
                f"{objective.name} has a bidirectional prefix in each document, so documents must be told apart: set "
                "PackDocuments.attend_across_documents = False"
            )
        return dataclasses.replace(self, long_documents=policy)


class PackedDelivery:
    """See `PackDocuments`; the interface is `data.rows.delivery.Delivery`."""

    def __init__(
        self,
        settings: PackDocuments,
        stores: Mapping[str, TokenStore],
        objective: Objective,
        length: int,
        *,
        seed: int,
        plan_dir: str | os.PathLike | None,
    ):
        self._stores = dict(stores)
        self._objective = objective
        self._length = length
        self._attend_across_documents = settings.attend_across_documents
        self._settings = {
            name: PlanSettings(store, objective, length, settings.fit, settings.long_documents, seed)
            for name, store in self._stores.items()
        }
        self._plans = {name: load_plan(value, name, plan_dir) for name, value in self._settings.items()}
        self.rows_per_epoch = {name: plan.num_rows for name, plan in self._plans.items()}
        self.tokens_per_row = {name: plan.summary["positions"] / plan.num_rows for name, plan in self._plans.items()}
        # Of the rules only: a run may take on a source later, and the stores are compared by themselves.
        rules = {value.rules_digest[:32] for value in self._settings.values()}
        self.parts = {"packing": repr(settings), "plans": sorted(rules)}

    def fields(
        self, names: Sequence[str], sources: np.ndarray, indices: np.ndarray, keys: RowKeys
    ) -> dict[str, np.ndarray]:
        """As `Delivery.fields`. The sequences of a row draw one after another from its key."""
        # By type: what a subclass does with a piece is its own business.
        make = self._causal_rows if type(self._objective) is CausalLm else self._rows
        fields: dict[str, np.ndarray] = {}
        for source in np.unique(sources):
            mine = np.flatnonzero(sources == source)
            part = make(names[source], np.asarray(indices, np.int64)[mine], keys.take(mine))
            if len(mine) == len(indices):
                return part
            for key, values in part.items():
                if key not in fields:
                    fields[key] = np.empty((len(indices), self._length), values.dtype)
                fields[key][mine] = values
        return fields

    def spans(self, name: str, index: int) -> list[tuple[int, int]]:
        """As `Delivery.spans`: one range a piece."""
        if not 0 <= index < self.rows_per_epoch[name]:
            raise ValueError(f"row {index} of '{name}', which has {self.rows_per_epoch[name]}")
        pieces = self._plans[name].pieces(np.array([index]))
        return list(zip(pieces.starts.tolist(), (pieces.starts + pieces.lengths).tolist(), strict=True))

    def statistics(self) -> dict[str, dict[str, Any]]:
        """As `Delivery.statistics`: the fields of `packing_plan.Summary`, and {"fill", "padding"}: exact shares of the
        positions of a pass.
        """
        return {name: {**self._fill(plan), **plan.summary} for name, plan in self._plans.items()}

    def _fill(self, plan: PackingPlan) -> dict[str, float]:
        fill = plan.summary["positions"] / (plan.num_rows * self._length)
        return {"fill": fill, "padding": 1.0 - fill}

    def _rows(self, name: str, indices: np.ndarray, keys: RowKeys) -> dict[str, np.ndarray]:
        """Rows of any objective, piece by piece."""
        pieces = self._plans[name].pieces(indices)
        tokens, bounds = _read_pieces(self._stores[name], pieces)
        choices = self._settings[name].choices(pieces.starts)
        expected = self._settings[name].packed_lengths(pieces.lengths, choices).tolist()
        rows: list[list[Example]] = []
        ends = np.cumsum(pieces.counts)
        for row, (first, end_) in enumerate(zip((ends - pieces.counts).tolist(), ends.tolist(), strict=True)):
            generator = keys[row]
            rows.append([])
            for piece in range(first, end_):
                begin, end = bounds[piece], bounds[piece + 1]
                given = Piece(tokens[begin + 1 : end], int(tokens[begin]), int(pieces.target_starts[piece]))
                example = self._objective.example(given, int(choices[piece]), generator)
                if len(example.inputs) != expected[piece]:
                    raise ValueError(
                        f"{self._objective.name} makes {len(example.inputs)} positions of a piece of "
                        f"{pieces.lengths[piece]} tokens, and said {expected[piece]}"
                    )
                rows[-1].append(example)
        return assemble(
            rows,
            self._length,
            attend_across_documents=self._attend_across_documents,
            with_prefix=self._objective.has_prefix,
        )

    def _causal_rows(self, name: str, indices: np.ndarray, keys: RowKeys) -> dict[str, np.ndarray]:
        """What `_rows` gives for `CausalLm`, ten times as fast: no Python for a piece but its reading."""
        del keys
        pieces = self._plans[name].pieces(indices)
        tokens, bounds = _read_pieces(self._stores[name], pieces)
        # In `tokens` every piece is led by the token before it: its inputs lack the last, its targets the first.
        flat = {
            batch_lib.INPUT_TOKENS: _without(tokens, bounds[1:] - 1),
            batch_lib.TARGET_TOKENS: _without(tokens, bounds[:-1]),
        }
        if not self._attend_across_documents:
            flat[batch_lib.SEGMENT_IDS] = np.repeat(_count_up(pieces.counts) + 1, pieces.lengths)
            flat[batch_lib.POSITIONS] = _count_up(pieces.lengths)
        fields = {
            key: np.zeros((len(indices), self._length), batch_lib.DTYPES[key])
            for key in [*flat, batch_lib.LOSS_WEIGHTS]
        }
        filled = np.add.reduceat(pieces.lengths, np.cumsum(pieces.counts) - pieces.counts)
        begin = 0
        for row, count in enumerate(filled.tolist()):
            for key, values in flat.items():
                fields[key][row, :count] = values[begin : begin + count]
            fields[batch_lib.LOSS_WEIGHTS][row, :count] = 1.0
            begin += count
        return fields


def _read_pieces(store: TokenStore, pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of pieces, each led by the token before it: (int32 [tokens + n], its bounds int64 [n + 1])."""
    bounds = np.concatenate([[0], np.cumsum(pieces.lengths + 1)])
    tokens = np.empty(bounds[-1], np.int32)
    # Nothing stands before the first document: the separator stands in.
    lead = (pieces.starts > 0).astype(np.int64)
    tokens[bounds[:-1]] = store.manifest.separator_id
    store.read_ranges(pieces.starts - lead, pieces.lengths + lead, tokens, bounds[:-1] + 1 - lead)
    return tokens, bounds


def _without(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`values` [n] without those at `places`."""
    kept = np.ones(len(values), bool)
    kept[places] = False
    return values[kept]


def _count_up(counts: np.ndarray) -> np.ndarray:
    """0 ... counts[0] - 1, 0 ... counts[1] - 1, ...: int32 [sum of counts]."""
    begins = np.cumsum(counts) - counts
    return np.arange(counts.sum(), dtype=np.int32) - np.repeat(begins.astype(np.int32), counts)
