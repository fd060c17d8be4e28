"""From documents to the rows of one source: windows of the concatenated stream, or packed documents.

A stream of rows hands out *materials*, what a row is made from; a kind of rows turns materials into fields once it is
known which global rows they are. A row that is only jumped over, or belongs to another host, stays a material.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.live.documents import DocumentStream, PlacedDocument, Tally
from t5x_scale.data.live.examples import EndOfStreamError, Place
from t5x_scale.data.objectives import Objective, Piece, RowKeys
from t5x_scale.data.order import order_key
from t5x_scale.data.rows.delivery import check_keeps_order, separate_documents
from t5x_scale.data.rows.packed_delivery import PackDocuments
from t5x_scale.data.rows.packing import assemble, pack

# Full rows that documents are collected for before they are packed. More leaves less empty and takes more memory. Part
# of the format of a run: another number is another order.
GROUP_ROWS = 256
# Documents left out in a row after which a source is taken for one that has nothing to deliver.
_MOST_LEFT_OUT = 1_000_000


class Position(NamedTuple):
    """Before which row a stream of rows stands.

    Attributes:
      place: the examples that lie behind whole.
      offset: windows: tokens of the next document that lie behind. Packed: rows of the next group that do.
      documents: packed: documents of that group; 0 where it has not been read.
    """

    place: Place = Place()
    offset: int = 0
    documents: int = 0


class RowStream(abc.ABC):
    """The rows of one source in one shard, in order."""

    @property
    @abc.abstractmethod
    def position(self) -> Position:
        """Where the next row begins."""

    @abc.abstractmethod
    def seek(self, position: Position) -> None:
        """Continues from a position; raises UserError if the source does not give the same examples again."""

    @abc.abstractmethod
    def next(self) -> Any:
        """The material of the next row; raises UserError if there is none."""

    @abc.abstractmethod
    def skip(self, rows: int) -> None:
        """Jumps over rows."""


class RowKind(abc.ABC):
    """How documents become rows.

    Attributes:
      parts: what the rows depend on beside documents, objective, length and seed, as JSON values.
    """

    parts: dict[str, Any]

    @abc.abstractmethod
    def make(self, documents: DocumentStream, name: str) -> RowStream:
        """The rows of a stream of documents; `name` tells streams apart."""

    @abc.abstractmethod
    def fields(self, materials: Sequence[Any], keys: RowKeys) -> dict[str, np.ndarray]:
        """The fields of `core.batch`, [n, L], of n rows."""


@dataclasses.dataclass(frozen=True)
class LiveWindows(RowKind):
    """Windows, as `delivery.Windows` cuts them from a store; see there for the attributes."""

    objective: Objective
    length: int
    separator: int
    attend_across_documents: bool = True

    def __post_init__(self):
        # Raises where the objective has no form for windows.
        self.objective.raw_length(self.length)
        if not self.attend_across_documents:
            check_keeps_order(self.objective)

    @property
    def parts(self) -> dict[str, Any]:
        return {"packing": f"Windows(attend_across_documents={self.attend_across_documents})"}

    def make(self, documents: DocumentStream, name: str) -> WindowRows:
        del name
        return WindowRows(documents, self.objective.raw_length(self.length), self.objective.stride(self.length))

    def fields(self, materials: Sequence[np.ndarray], keys: RowKeys) -> dict[str, np.ndarray]:
        raw = np.stack(materials)
        fields = self.objective(raw, keys, self.length)
        if not self.attend_across_documents:
            separators = np.full(len(raw), self.separator)
            fields.update(separate_documents(raw[:, raw.shape[1] - self.length :], separators))
        return fields


class WindowRows(RowStream):
    """Windows of `raw_length` tokens at a distance of `stride`, cut from documents joined end to end."""

    def __init__(self, documents: DocumentStream, raw_length: int, stride: int):
        self._documents, self._raw_length, self._stride = documents, raw_length, stride
        self._held: collections.deque[PlacedDocument] = collections.deque()
        # Of the first document held, what lies behind; beyond its end where the next window begins in a later one.
        self._offset = 0
        self._tokens = 0

    @property
    def position(self) -> Position:
        """As in the interface: in the first document of which tokens are still wanted."""
        return Position(self._held[0].before if self._held else self._documents.place, self._offset)

    def seek(self, position: Position) -> None:
        self._documents.seek(position.place)
        self._held.clear()
        self._tokens, self._offset = 0, position.offset

    def next(self) -> np.ndarray:
        """The tokens of the next window, int32 [raw_length]."""
        self._hold(self._raw_length)
        parts, need, offset = [], self._raw_length, self._offset
        for document in self._held:
            part = document.tokens[offset : offset + need]
            parts.append(part)
            need -= len(part)
            if not need:
                break
            offset = max(offset - len(document.tokens), 0)
        self._advance()
        return np.concatenate(parts)

    def skip(self, rows: int) -> None:
        for _ in range(rows):
            self._hold(self._raw_length)
            self._advance()

    def _hold(self, tokens: int) -> None:
        while self._tokens - self._offset < tokens:
            document = next(self._documents)
            self._held.append(document)
            self._tokens += len(document.tokens)

    def _advance(self) -> None:
        self._offset += self._stride
        while self._held and self._offset >= len(self._held[0].tokens):
            behind = len(self._held.popleft().tokens)
            self._offset -= behind
            self._tokens -= behind


@dataclasses.dataclass(frozen=True)
class LivePacked(RowKind):
    """Whole documents packed into rows, as `packed_delivery.PackDocuments` does with a store's, group by group.

    A store's plan sees all lengths at once; a stream packs as many documents as fill about `group_rows` rows, delivers
    these in an order of chance, and goes on.
    """

    objective: Objective
    length: int
    separator: int
    seed: int
    settings: PackDocuments = PackDocuments()
    group_rows: int = GROUP_ROWS

    def __post_init__(self):
        object.__setattr__(self, "settings", self.settings.checked(self.objective))
        if self.longest_piece < 1:
            raise UserError(f"rows of {self.length} positions are too short for {self.objective.name}")

    @property
    def longest_piece(self) -> int:
        """The most tokens of a piece."""
        return self.objective.longest_piece(self.length)

    @property
    def parts(self) -> dict[str, Any]:
        return {"packing": repr(self.settings), "group_rows": self.group_rows}

    def make(self, documents: DocumentStream, name: str) -> PackedRows:
        return PackedRows(self, documents, name)

    def fields(self, materials: Sequence[list[tuple[Piece, int]]], keys: RowKeys) -> dict[str, np.ndarray]:
        rows = []
        for index, material in enumerate(materials):
            generator = keys[index]
            rows.append([self.objective.example(piece, choice, generator) for piece, choice in material])
        return assemble(
            rows,
            self.length,
            attend_across_documents=self.settings.attend_across_documents,
            with_prefix=self.objective.has_prefix,
        )

    def pieces(self, document: PlacedDocument) -> list[Piece]:
        """A document as sequences that fit a row; none where it is too long and must not be cut."""
        longest, tokens = self.longest_piece, document.tokens
        if len(tokens) > longest and self.settings.long_documents == "drop":
            return []
        pieces = []
        for start in range(0, len(tokens), longest):
            part = tokens[start : start + longest]
            previous = int(tokens[start - 1]) if start else self.separator
            pieces.append(Piece(part, previous, int(np.clip(document.target_start - start, 0, len(part)))))
        return pieces

    def packed_lengths(self, pieces: Sequence[Piece], choices: Sequence[int]) -> list[int]:
        """Positions that pieces fill."""
        if not pieces:
            return []
        sizes = np.array([len(piece.tokens) for piece in pieces], np.int64)
        return self.objective.packed_length(sizes, np.array(choices, np.uint64)).tolist()


class PackedRows(RowStream):
    """The rows of packed documents, group by group.

    Attributes:
      left_out: tally of the documents left out because they were too long.
    """

    def __init__(self, kind: LivePacked, documents: DocumentStream, name: str):
        self._kind, self._documents, self._name = kind, documents, name
        self.left_out = Tally(name, "documents too long for a row")
        self._forget(Position())

    def _forget(self, position: Position) -> None:
        self._start, self._row, self._count = position.place, position.offset, position.documents
        self._rows: list[list[tuple[Piece, int]]] = []

    @property
    def position(self) -> Position:
        """As in the interface: a row of the group at hand, which is read again from its first document."""
        return Position(self._start, self._row, self._count)

    def seek(self, position: Position) -> None:
        self._documents.seek(position.place)
        self._forget(position)

    def next(self) -> list[tuple[Piece, int]]:
        """The sequences of the next row, each with its choice."""
        self._fill()
        row = self._rows[self._row]
        self._advance(1)
        return row

    def skip(self, rows: int) -> None:
        while rows:
            self._fill()
            part = min(rows, len(self._rows) - self._row)
            self._advance(part)
            rows -= part

    def _advance(self, rows: int) -> None:
        self._row += rows
        if self._row == len(self._rows):
            self._forget(Position(self._documents.place))

    def _fill(self) -> None:
        """Reads and packs the next group, unless one is at hand."""
        if self._rows:
            return
        kind = self._kind
        key = order_key(kind.seed, self._start.epoch, f"{self._name}/group {self._start.example}")
        words, groups_key = np.random.Philox(key=key), key ^ 1
        pieces, lengths, choices, count = [], [], [], 0
        filled, wanted = 0, kind.group_rows * kind.length
        # A group that was cut short where the stream ended is the same group when it may go on.
        while (count < self._count) if self._count else (filled < wanted):
            try:
                document = next(self._documents)
            except EndOfStreamError:
                if pieces and not self._count:
                    break
                raise
            count += 1
            mine = kind.pieces(document)
            self.left_out.add(not mine)
            drawn = words.random_raw(len(mine)).tolist()
            for piece, choice, size in zip(mine, drawn, kind.packed_lengths(mine, drawn), strict=True):
                # An objective may make nothing of a piece.
                if size:
                    pieces.append(piece)
                    choices.append(choice)
                    lengths.append(size)
                    filled += size
            if not pieces and count >= _MOST_LEFT_OUT:
                raise UserError(f"'{self._name}': none of {count:,} documents in a row fits a row; use longer rows")
        packed = pack(np.array(lengths, np.int64), kind.length, kind.settings.fit)
        entries = list(zip(pieces, choices, strict=True))
        rows = [
            [entries[item] for item in packed.order[first:end]]
            for first, end in zip(packed.row_starts[:-1].tolist(), packed.row_starts[1:].tolist(), strict=True)
        ]
        # Packing sorts by length; training should not see the long documents first.
        order = np.argsort(np.random.Philox(key=groups_key).random_raw(len(rows)), kind="stable")
        self._rows, self._count = [rows[index] for index in order], count
