"""The packing plan of a source: which pieces of which documents share a row. A pure function of `PlanSettings`.

documents -> pieces (too long ones are split, or left out and counted) -> positions that each fills -> rows

A plan is made in blocks of about a million pieces, so that memory does not grow with the corpus; a block takes
stretches of documents from all over the corpus, and rows share no pieces with other blocks. Within a block pieces come
in a random order, so that neighbours in the corpus are no likelier to share a row than others.
`data.rows.packing_plan_files` keeps plans.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from t5x_scale.core.describe import digest
from t5x_scale.core.errors import UserError
from t5x_scale.core.mixing import GOLDEN, mix
from t5x_scale.data.objectives import Objective
from t5x_scale.data.rows.packing import Fit, pack
from t5x_scale.data.token_store import TokenStore

# Part of every plan's digest: raise it with any change of what a plan holds.
FORMAT_VERSION = 2
BLOCK_PIECES = 2**20
# Neighbouring documents that come into a block together, or fewer where they are long: they are read at once.
STRETCH_DOCUMENTS = 2**14
# Rows of text after which a document that is cut piece by piece begins anew, so that its parts are cut side by side.
RUN_ROWS = 4096
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
        """The most tokens of a piece, whatever its choice.

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
        return _scatter(_scatter(np.asarray(starts).astype(np.uint64)) + key)

    def longest_pieces(self, choices: np.ndarray) -> np.ndarray:
        """The most tokens of the pieces of these choices, int64 [n], none less than `longest_piece`."""
        return np.asarray(self.objective.longest_pieces(self.length, choices), np.int64)

    def packed_lengths(self, lengths: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """Positions that pieces fill, int64 [n].

        Raises:
          ValueError: one fills more than a row, though none is longer than `longest_pieces` allows.
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
        choices = _scatter(np.arange(64, dtype=np.uint64))
        sample = self.packed_lengths(lengths, choices[: len(lengths)])
        return {
            "format_version": FORMAT_VERSION,
            "store": self.store.fingerprint,
            "objective": self.objective.name,
            "length": self.length,
            "fit": self.fit,
            "long_documents": self.long_documents,
            "seed": self.seed,
            "longest_pieces": self.longest_pieces(choices).tolist(),
            # A later version of an objective may give other lengths under the same name.
            "packed_lengths": sample.tolist(),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of `describe()`: equal digests, equal plans."""
        return digest(self.describe())

    @property
    def rules_digest(self) -> str:
        """SHA-256 of all but the store: what the plans of every source of a run have in common."""
        return digest({name: value for name, value in self.describe().items() if name != "store"})


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
        """Rows of one pass over the source."""
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
    # At the most: documents are not cut smaller.
    most = store.num_documents + store.num_tokens // settings.longest_piece
    blocks = -(-most // BLOCK_PIECES)
    stretch = min(STRETCH_DOCUMENTS, max(BLOCK_PIECES // 16 * store.num_documents // most, 1))
    for block in range(blocks):
        pieces = _cut(settings, _read_documents(store, block, blocks, stretch), summary)
        choices = settings.choices(pieces.starts)
        packed = settings.packed_lengths(pieces.lengths, choices)
        # A second number: what a piece becomes must not decide where it comes.
        order = np.argsort(_scatter(choices), kind="stable")
        order = order[packed[order] > 0]
        summary.pieces_left_out += len(choices) - len(order)
        rows = pack(packed[order], settings.length, settings.fit)
        order = order[rows.order]
        pieces = pieces.take(order)
        arrays = {
            "row_starts": rows.row_starts[1:] + summary.pieces,
            "piece_starts": pieces.starts,
            "piece_lengths": pieces.lengths,
        }
        if store.is_supervised:
            arrays["target_starts"] = pieces.targets
        summary.pieces += len(order)
        summary.rows += rows.num_rows
        summary.positions += int(packed[order].sum())
        yield {name: value.astype(ARRAYS[name]) for name, value in arrays.items()}


@dataclasses.dataclass(frozen=True)
class _Texts:
    """Documents, or parts of them; every field is int64 [n]: first positions, tokens, tokens that are inputs."""

    starts: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray

    def take(self, which: np.ndarray) -> _Texts:
        return _Texts(self.starts[which], self.lengths[which], self.targets[which])

    def heads(self, lengths: np.ndarray) -> _Texts:
        """The first `lengths` tokens of each."""
        return _Texts(self.starts, lengths, np.minimum(self.targets, lengths))

    def tails(self, lengths: np.ndarray) -> _Texts:
        """What follows those."""
        return _Texts(self.starts + lengths, self.lengths - lengths, np.maximum(self.targets - lengths, 0))

    @classmethod
    def join(cls, parts: Sequence[_Texts]) -> _Texts:
        none = np.zeros(0, np.int64)
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([none, *(getattr(part, name) for part in parts)]) for name in names))


def _cut(settings: PlanSettings, documents: _Texts, summary: Summary) -> _Texts:
    """The pieces of a block's documents."""
    longest = settings.longest_pieces(settings.choices(documents.starts))
    long = documents.lengths > longest
    summary.documents += len(long)
    summary.tokens += int(documents.lengths.sum())
    if settings.long_documents == "drop":
        lengths = documents.lengths[long]
        if len(lengths):
            shortest = int(lengths.min())
            summary.shortest_left_out = min(summary.shortest_left_out or shortest, shortest)
        summary.documents_left_out += len(lengths)
        summary.tokens_left_out += int(lengths.sum())
        return documents.take(~long)
    summary.documents_split += int(long.sum())
    if type(settings.objective).longest_pieces is Objective.longest_pieces:
        return _split_evenly(documents, settings.longest_piece)
    return _split_by_choices(settings, _split_evenly(documents, RUN_ROWS * settings.length))


def _split_evenly(texts: _Texts, longest: int) -> _Texts:
    """Cuts texts into pieces of `longest` tokens, and what is left."""
    counts = -(-texts.lengths // longest)
    offsets = longest * (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts))
    tails = texts.take(np.repeat(np.arange(len(counts)), counts)).tails(offsets)
    return tails.heads(np.minimum(tails.lengths, longest))


def _split_by_choices(settings: PlanSettings, texts: _Texts) -> _Texts:
    """Cuts texts into pieces as long as the choice that goes with a piece's place allows: the first of all, the
    second of all that have one, and so on.
    """
    pieces = []
    while len(texts.starts):
        longest = settings.longest_pieces(settings.choices(texts.starts))
        lengths = np.minimum(texts.lengths, longest)
        pieces.append(texts.heads(lengths))
        texts = texts.tails(lengths).take(texts.lengths > longest)
    return _Texts.join(pieces)


def _read_documents(store: TokenStore, block: int, blocks: int, stretch: int) -> _Texts:
    """A block's documents: every so many stretches of them, so many documents each."""
    parts = []
    for first in range(block * stretch, store.num_documents, blocks * stretch):
        stop = min(first + stretch, store.num_documents)
        bounds = store.document_starts(first, min(stop + 1, store.num_documents))
        if stop == store.num_documents:
            bounds = np.append(bounds, store.num_tokens)
        parts.append(_Texts(bounds[:-1], np.diff(bounds), store.target_starts(first, stop)))
    return _Texts.join(parts)


def _scatter(values: np.ndarray) -> np.ndarray:
    """The number that SplitMix64 gives after each state, uint64 [n] to uint64 [n]: a random bijection."""
    return mix(values + GOLDEN)
