"""The packing plan of a source: which pieces of which documents share a row. A pure function of `PlanSettings`.

documents -> pieces (too long ones are split, or left out and counted) -> positions that each fills -> rows

A plan is made in blocks of about a million pieces, so that memory does not grow with the corpus; a block takes
stretches of documents from all over the corpus, and rows share no pieces with other blocks. Within a block pieces come
in a random order, so that neighbours in the corpus are no likelier to share a row than others.
`data.packing_plan_files` keeps plans.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives import Objective
from t5x_scale.data.packing import Fit, pack
from t5x_scale.data.token_store import TokenStore

# Part of every plan's digest: raise it with any change of what a plan holds.
FORMAT_VERSION = 1
BLOCK_PIECES = 2**20
# Neighbouring documents that come into a block together: they are read at once.
STRETCH_DOCUMENTS = 2**14
# Of every plan, in this order. "target_starts" is of supervised stores only.
ARRAYS: dict[str, np.dtype] = {
    "row_starts": np.dtype("<i8"),
    "piece_starts": np.dtype("<i8"),
    "piece_lengths": np.dtype("<i4"),
    "target_starts": np.dtype("<i4"),
}
LongDocuments = Literal["split", "drop"]


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """All that a plan depends on.

    Attributes:
      store: whose documents are packed.
      objective: says how many positions a piece fills.
      length: L, positions of a row.
      fit: as `packing.pack`.
      long_documents: "split" documents that no row can hold, or "drop" them.
      seed: of the pieces' choices and of their order.
    """

    store: TokenStore
    objective: Objective
    length: int
    fit: Fit
    long_documents: LongDocuments
    seed: int

    @property
    def longest_piece(self) -> int:
        """The most tokens of a piece.

        Raises:
          UserError: a row holds none.
        """
        longest = self.objective.longest_piece(self.length)
        if longest < 1:
            raise UserError(f"rows of {self.length} positions are too short for {self.objective.name}")
        return longest

    def choices(self, starts: np.ndarray) -> np.ndarray:
        """The fixed random number of the piece that begins at each token, uint64 [n]."""
        text = f"{self.seed}/{self.store.fingerprint}".encode()
        key = np.frombuffer(hashlib.sha256(text).digest()[:8], "<u8")[0]
        return _mix(_mix(np.asarray(starts).astype(np.uint64)) + key)

    def packed_lengths(self, lengths: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """Positions that pieces fill, int64 [n].

        Raises:
          ValueError: one fills more than a row, though none is longer than `longest_piece`.
        """
        packed = np.asarray(self.objective.packed_length(np.asarray(lengths, np.int64), choices), np.int64)
        if len(packed) and packed.max() > self.length:
            raise ValueError(
                f"{self.objective.name} makes {packed.max()} positions of a piece for rows of {self.length}"
            )
        return packed

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values."""
        lengths = np.unique(np.linspace(1, self.longest_piece, 64).astype(np.int64))
        sample = self.packed_lengths(lengths, _mix(np.arange(len(lengths), dtype=np.uint64)))
        return {
            "format_version": FORMAT_VERSION,
            "store": self.store.fingerprint,
            "objective": self.objective.name,
            "length": self.length,
            "fit": self.fit,
            "long_documents": self.long_documents,
            "seed": self.seed,
            "longest_piece": self.longest_piece,
            # A later version of an objective may give other lengths under the same name.
            "packed_lengths": sample.tolist(),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of `describe()`: equal digests, equal plans."""
        return _digest(self.describe())

    @property
    def rules_digest(self) -> str:
        """SHA-256 of all but the store: what the plans of every source of a run have in common."""
        return _digest({name: value for name, value in self.describe().items() if name != "store"})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces of some rows, row after row.

    Attributes:
      starts: int64 [n], position in the store of a piece's first token.
      lengths: int64 [n], tokens of a piece.
      target_starts: int64 [n], as `Piece.target_start`.
      counts: int64 [rows], pieces of each row.
    """

    starts: np.ndarray
    lengths: np.ndarray
    target_starts: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class PackingPlan:
    """A plan, in memory or mapped from files.

    Attributes:
      arrays: as `ARRAYS`: "row_starts" [rows + 1] into the pieces, "piece_starts", "piece_lengths", "target_starts"
        [pieces].
      summary: the fields of `Summary`.
    """

    arrays: Mapping[str, np.ndarray]
    summary: Mapping[str, int]

    @property
    def num_rows(self) -> int:
        return len(self.arrays["row_starts"]) - 1

    def pieces(self, rows: np.ndarray) -> Pieces:
        """The pieces of rows, int64 [n], each in [0, num_rows)."""
        rows = np.asarray(rows, np.int64)
        begins = self.arrays["row_starts"][rows]
        counts = self.arrays["row_starts"][rows + 1] - begins
        index = np.repeat(begins - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        targets = self.arrays.get("target_starts")
        return Pieces(
            starts=self.arrays["piece_starts"][index],
            lengths=self.arrays["piece_lengths"][index].astype(np.int64),
            target_starts=np.zeros(len(index), np.int64) if targets is None else targets[index].astype(np.int64),
            counts=counts,
        )


@dataclasses.dataclass
class Summary:
    """What became of the documents of a store.

    Attributes:
      documents, tokens: of the store.
      documents_split: cut into pieces.
      documents_left_out, tokens_left_out: too long for a row, where long documents are dropped.
      pieces_left_out: of which the objective makes nothing.
      pieces, rows: of the plan.
      positions: of the rows that are no padding.
      shortest_left_out: tokens of the shortest document left out; 0 where there is none.
    """

    documents: int = 0
    tokens: int = 0
    documents_split: int = 0
    documents_left_out: int = 0
    tokens_left_out: int = 0
    pieces_left_out: int = 0
    pieces: int = 0
    rows: int = 0
    positions: int = 0
    shortest_left_out: int = 0


def make_blocks(settings: PlanSettings, summary: Summary) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of a plan block by block, to be joined; `summary` counts along.

    "row_starts" of a block are the ends of its rows, counted from the first piece of all, so that a zero and all
    blocks joined are the whole.
    """
    store = settings.store
    pieces = store.num_documents + store.num_tokens // settings.longest_piece
    blocks = -(-pieces // BLOCK_PIECES)
    for block in range(blocks):
        starts, lengths, targets = _cut(settings, block, blocks, summary)
        choices = settings.choices(starts)
        packed = settings.packed_lengths(lengths, choices)
        # A second number: what a piece becomes must not decide where it comes.
        order = np.argsort(_mix(choices), kind="stable")
        order = order[packed[order] > 0]
        summary.pieces_left_out += len(starts) - len(order)
        rows = pack(packed[order], settings.length, settings.fit)
        order = order[rows.order]
        arrays = {
            "row_starts": rows.row_starts[1:] + summary.pieces,
            "piece_starts": starts[order],
            "piece_lengths": lengths[order],
        }
        if store.is_supervised:
            arrays["target_starts"] = targets[order]
        summary.pieces += len(order)
        summary.rows += rows.num_rows
        summary.positions += int(packed[order].sum())
        yield {name: value.astype(ARRAYS[name]) for name, value in arrays.items()}


def _cut(
    settings: PlanSettings, block: int, blocks: int, summary: Summary
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pieces of a block's documents: (first positions, tokens, target starts), int64 [n] each."""
    starts, lengths, targets = _read_documents(settings.store, block, blocks)
    longest = settings.longest_piece
    long = lengths > longest
    summary.documents += len(starts)
    summary.tokens += int(lengths.sum())
    if settings.long_documents == "drop":
        if long.any():
            shortest = int(lengths[long].min())
            summary.shortest_left_out = min(summary.shortest_left_out or shortest, shortest)
        summary.documents_left_out += int(long.sum())
        summary.tokens_left_out += int(lengths[long].sum())
        return starts[~long], lengths[~long], targets[~long]
    summary.documents_split += int(long.sum())
    counts = -(-lengths // longest)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets = number * longest
    lengths = np.minimum(np.repeat(lengths, counts) - offsets, longest)
    targets = np.clip(np.repeat(targets, counts) - offsets, 0, lengths)
    return np.repeat(starts, counts) + offsets, lengths, targets


def _read_documents(store: TokenStore, block: int, blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A block's documents: (first positions, tokens, target starts), int64 [n] each."""
    starts, lengths, targets = [], [], []
    for first in range(block * STRETCH_DOCUMENTS, store.num_documents, blocks * STRETCH_DOCUMENTS):
        stop = min(first + STRETCH_DOCUMENTS, store.num_documents)
        bounds = store.document_starts(first, min(stop + 1, store.num_documents))
        if stop == store.num_documents:
            bounds = np.append(bounds, store.num_tokens)
        starts.append(bounds[:-1])
        lengths.append(np.diff(bounds))
        targets.append(store.target_starts(first, stop))
    none = [np.zeros(0, np.int64)]
    return np.concatenate(none + starts), np.concatenate(none + lengths), np.concatenate(none + targets)


def _mix(values: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014), uint64 [n] to uint64 [n]: a random bijection."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
