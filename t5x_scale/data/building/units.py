"""Cuts the stream of a source into units of work, in a way that depends on the source alone."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from t5x_scale.data.building.interface import Piece, Record

# Characters (bytes, ids) of a unit, about: what one worker holds, and what is done again after a kill. A second of work
# at most; a terabyte of text makes half a million parts of them.
UNIT_CHARACTERS = 2_000_000


@dataclasses.dataclass(frozen=True)
class Unit:
    """Consecutive records of a source.

    Attributes:
      index: of the unit in its source, from 0.
      records: at least one.
      begins: whether the first record begins a document, rather than going on with one of the unit before.
    """

    index: int
    records: tuple[Record, ...]
    begins: bool = True

    @functools.cached_property
    def digest(self) -> str:
        """A hash of everything in the unit but its index: equal digests give equal parts."""
        digest = hashlib.blake2b(digest_size=16, usedforsecurity=False)
        digest.update(b"begins" if self.begins else b"goes on")
        for record in self.records:
            digest.update(b"%d %d %d\n" % (record.ends, record.inputs is not None, len(record.targets)))
            for piece in record.pieces:
                kind, content = _to_bytes(piece)
                digest.update(b"%s %d\n" % (kind, len(content)))
                digest.update(content)
        return digest.hexdigest()

    @functools.cached_property
    def characters(self) -> int:
        """Characters, bytes or ids of all records."""
        return sum(len(piece) for record in self.records for piece in record.pieces)


def make_units(
    records: Iterable[Record], *, whole_documents: bool = False, unit_characters: int | None = None
) -> Iterator[Unit]:
    """The units of a source, in order.

    Args:
      records: of the source, in order.
      whole_documents: whether the records of a long document are joined first; else it may lie in several units.
      unit_characters: a unit is closed as soon as it holds this many; `UNIT_CHARACTERS` when None.
    """
    limit = unit_characters or UNIT_CHARACTERS
    index, gathered, characters, begins = 0, [], 0, True
    for record in join_records(records) if whole_documents else records:
        if gathered and not gathered[-1].ends:
            first = gathered.pop()
            record = Record(first.targets + record.targets, first.inputs, record.ends)
            characters -= sum(map(len, first.pieces)) + 1
        gathered.append(record)
        # Of documents without text too there must be an end.
        characters += sum(map(len, record.pieces)) + 1
        if characters >= limit:
            yield Unit(index, tuple(gathered), begins)
            index, gathered, characters, begins = index + 1, [], 0, gathered[-1].ends
    if gathered:
        yield Unit(index, tuple(gathered), begins)


def join_records(records: Iterable[Record]) -> Iterator[Record]:
    """Documents as one record each; their pieces stay apart, so that they are tokenised as if they were not joined.

    Raises:
      ValueError: the source ends within a document.
    """
    inputs, targets = None, []
    for record in records:
        inputs = record.inputs if inputs is None else inputs
        targets += record.targets
        if record.ends:
            yield Record(tuple(targets), inputs)
            inputs, targets = None, []
    if targets or inputs is not None:
        raise ValueError("the source ends within a document")


def _to_bytes(piece: Piece) -> tuple[bytes, bytes]:
    if isinstance(piece, str):
        return b"text", piece.encode("utf-8", "surrogatepass")
    if isinstance(piece, bytes):
        return b"utf8", piece
    return b"ids", np.ascontiguousarray(piece, "<i8").tobytes()
