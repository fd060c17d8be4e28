"""The rows of one shard: every source's, dealt by the mixture, with what a checkpoint needs to come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5x_scale.data.live.examples import Place
from t5x_scale.data.live.rows import Position, RowStream
from t5x_scale.data.mixtures.mixture_schedule import MixtureSchedule


class Bookmark(NamedTuple):
    """Where a shard stood.

    Attributes:
      row: its next row.
      positions: {source: position of its next row}; a source that had no row yet is absent.
    """

    row: int = 0
    positions: Mapping[str, Position] = {}

    @property
    def examples(self) -> int:
        """Examples that must be read to come back here."""
        return sum(position.place.example for position in self.positions.values())

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        positions = {
            name: [*position.place, position.offset, position.documents] for name, position in self.positions.items()
        }
        return {"row": self.row, "positions": positions}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Bookmark:
        """What `to_json` gave."""
        positions = {
            name: Position(Place(int(epoch), int(example), str(checksum), int(per_epoch)), int(offset), int(documents))
            for name, (epoch, example, checksum, per_epoch, offset, documents) in value["positions"].items()
        }
        return cls(int(value["row"]), positions)


class ShardReader:
    """The rows of one shard, forward; going elsewhere opens the sources anew.

    Attributes:
      row: the next row, counted in this shard.
    """

    def __init__(self, make_streams: Mapping[str, Callable[[], RowStream]], mixture: MixtureSchedule):
        """Args:
        make_streams: {source: makes its rows, from the beginning}.
        mixture: deals the shard's rows.
        """
        self._make_streams, self._mixture = dict(make_streams), mixture
        self._streams: dict[str, RowStream] = {}
        self.row = 0

    def bookmark(self) -> Bookmark:
        """Where the shard stands."""
        return Bookmark(self.row, {name: stream.position for name, stream in sorted(self._streams.items())})

    def seek(self, bookmark: Bookmark) -> None:
        """Goes to where `bookmark` was taken.

        Raises:
          UserError: a source does not give the same examples again.
        """
        self._streams = {}
        self.row = 0
        for name, position in bookmark.positions.items():
            self._stream(name).seek(position)
        self.row = bookmark.row

    def take(self, rows: Sequence[int]) -> list[Any]:
        """The materials of rows of this shard, which must ascend and not lie behind; others are jumped over.

        Raises:
          UserError: a source has ended or cannot be read.
        """
        return [self._take(row) for row in rows]

    def advance(self, row: int) -> None:
        """Jumps over the rows before `row`."""
        if row < self.row:
            raise ValueError(f"row {row} lies behind: the next one is {self.row}")
        if row > self.row:
            between = self._mixture.rows_before(row) - self._mixture.rows_before(self.row)
            for name, count in zip(self._mixture.names, between.tolist(), strict=True):
                if count:
                    self._stream(name).skip(count)
            self.row = row

    def _take(self, row: int) -> Any:
        self.advance(row)
        sources, _ = self._mixture.slot(np.array([row]))
        material = self._stream(self._mixture.names[int(sources[0])]).next()
        self.row = row + 1
        return material

    def _stream(self, name: str) -> RowStream:
        if name not in self._streams:
            self._streams[name] = self._make_streams[name]()
        return self._streams[name]
