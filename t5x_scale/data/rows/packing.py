"""Packing: which sequences share a row, and how a row of several sequences is laid out. Pure functions of lengths.

Two fits (Johnson, "Near-optimal bin packing algorithms", 1973):

    best    best-fit decreasing: from the longest on, each into the fullest row that still has room. Needs all lengths.
    first   first fit: in the order given, each into the first row that has room.

Neither uses more than 11/9 (best) or 17/10 (first) of the rows that must be; where short sequences are many, best-fit
decreasing leaves practically nothing empty.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from t5x_scale.core import batch as batch_lib
from t5x_scale.data.objectives import Example

Fit = Literal["best", "first"]
FITS: tuple[Fit, ...] = ("best", "first")


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Which items share a row: row r holds the items order[row_starts[r] : row_starts[r + 1]].

    Attributes:
      order: int64 [n], every item once; within a row they ascend.
      row_starts: int64 [rows + 1].
    """

    order: np.ndarray
    row_starts: np.ndarray

    @property
    def num_rows(self) -> int:
        """Rows that hold all items."""
        return len(self.row_starts) - 1


def pack(lengths: np.ndarray, capacity: int, fit: Fit = "best") -> PackedRows:
    """Packs items into rows; the same arguments give the same rows.

    Args:
      lengths: int64 [n], each in [1, capacity].
      capacity: of a row.
      fit: see the module.

    Raises:
      ValueError: a length is outside [1, capacity], or `fit` is unknown.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= capacity):
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()} do not fit rows of {capacity}")
    if fit not in FITS:
        raise ValueError(f"unknown fit '{fit}'; known are {', '.join(FITS)}")
    rows = _best_fit_decreasing(lengths, capacity) if fit == "best" else _first_fit(lengths, capacity)
    counts = np.bincount(rows, minlength=0)
    return PackedRows(np.argsort(rows, kind="stable"), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each item, int64 [n].

    Items of one length and rows of one remaining capacity are interchangeable, so they move together. A row chosen for
    an item stays the fullest with room for the next item of that length until it has none, so k = room // length
    items go into it at once. Rows are opened in order, so a group of them is a range of numbers. Each move at least
    halves the room of its rows: there are at most log2(capacity) moves for each distinct length, however many items.
    """
    order = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    rooms: list[int] = []  # Of the open rows, ascending and distinct.
    groups: dict[int, list[tuple[int, int]]] = {}  # room -> [(first row, rows)]
    moves: list[tuple[int, int, int]] = []  # (items, first row, items into each row)
    opened = 0

    def put_back(room: int, first: int, rows: int) -> None:
        if not rows or not room:
            return
        if room not in groups:
            bisect.insort(rooms, room)
            groups[room] = []
        groups[room].append((first, rows))

    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            place = bisect.bisect_left(rooms, size)
            if place < len(rooms):
                room = rooms[place]
                first, rows = groups[room].pop()
                if not groups[room]:
                    del groups[room], rooms[place]
            else:
                room, first, rows = capacity, opened, -(-count // (capacity // size))
                opened += rows
            each = room // size
            whole, rest = divmod(min(count, rows * each), each)
            moves.append((whole * each + rest, first, each))
            count -= whole * each + rest
            put_back(room - each * size, first, whole)
            if rest:
                put_back(room - rest * size, first + whole, 1)
                whole += 1
            put_back(room, first + whole, rows - whole)
    row_of = np.empty(len(lengths), np.int64)
    row_of[order] = _spread(moves)
    return row_of


def _spread(moves: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """The row of each item in the order in which they moved: item i of a move goes into row first + i // each."""
    if not moves:
        return np.zeros(0, np.int64)
    items, firsts, each = np.array(moves, np.int64).T
    begins = np.cumsum(items) - items
    index = np.arange(items.sum()) - np.repeat(begins, items)
    return np.repeat(firsts, items) + index // np.repeat(each, items)


def _first_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each item, int64 [n]; a tree of the largest room below each node finds the first row with room."""
    # Never two rows are half empty or more, so there are no more rows than this.
    most = 2 * int(lengths.sum()) // capacity + 1
    leaves = 1 << (most - 1).bit_length()
    room = [capacity] * (2 * leaves)
    rows = []
    for length in lengths.tolist():
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < length:
                node += 1
        rows.append(node - leaves)
        room[node] -= length
        while node > 1:
            largest = room[node] if room[node] >= room[node ^ 1] else room[node ^ 1]
            node >>= 1
            if room[node] == largest:
                break
            room[node] = largest
    return np.array(rows, np.int64)


def assemble(
    rows: Sequence[Sequence[Example]], length: int, *, attend_across_documents: bool, with_prefix: bool
) -> dict[str, np.ndarray]:
    """Lays sequences out in rows, one behind the other, padding at the end.

    Padding is token 0, weight 0, segment 0, position 0: it is told by its segment or its weight, never by its token.

    Args:
      rows: the sequences of each row.
      length: L, positions of a row.
      attend_across_documents: whether positions see all before them in the row; then there are no segment ids.
      with_prefix: whether to deliver `decoder_causal_attention`.

    Returns:
      The fields of `core.batch`, each [rows, length].

    Raises:
      ValueError: a row's sequences do not fit it.
    """
    names = [*batch_lib.REQUIRED]
    if not attend_across_documents:
        names += [batch_lib.SEGMENT_IDS, batch_lib.POSITIONS]
    if with_prefix:
        names += [batch_lib.PREFIX]
    fields = {name: np.zeros((len(rows), length), batch_lib.DTYPES[name]) for name in names}
    for row, examples in enumerate(rows):
        begin = 0
        for segment, example in enumerate(examples, start=1):
            end = begin + len(example.inputs)
            if end > length:
                raise ValueError(f"sequences of {end} positions or more in a row of {length}")
            fields[batch_lib.INPUT_TOKENS][row, begin:end] = example.inputs
            fields[batch_lib.TARGET_TOKENS][row, begin:end] = example.targets
            fields[batch_lib.LOSS_WEIGHTS][row, begin:end] = example.weights
            if not attend_across_documents:
                fields[batch_lib.SEGMENT_IDS][row, begin:end] = segment
                own = example.positions
                fields[batch_lib.POSITIONS][row, begin:end] = np.arange(end - begin) if own is None else own
            if with_prefix:
                fields[batch_lib.PREFIX][row, begin : begin + example.prefix] = 1
            begin = end
    return fields
