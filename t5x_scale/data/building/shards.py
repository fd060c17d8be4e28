"""Sources that several machines can read at once, each a shard.

`text:` files         shards of whole files, about as many bytes each
SeqIO tasks           file by file where that is the task's own order (`data.seqio_source.shards`: JSON lines, text
                      files and TFRecords of the folder `tasks`); otherwise one reader, in the task's own order; or,
                      when asked to, by the shards of the source, which is another order, and so another store

In the first two cases the records are those of one machine that reads everything, and a store has the same bytes.
Reading is seldom what takes time: one reader keeps dozens of tokenisers busy.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from t5x_scale.core import files
from t5x_scale.data import text_source
from t5x_scale.data.building.interface import Record
from t5x_scale.data.catalog import import_seqio_source
from t5x_scale.data.vocabulary import Vocabulary

# Bytes of text files in a shard, about.
SHARD_BYTES = 2**26


class ShardedSource(Protocol):
    """A source in shards. Picklable; the records of all shards, in their order, are the source's."""

    def list_shards(self) -> Sequence[Any]:
        """What `read_shard` takes: picklable, in order.

        Raises:
          UserError: the source cannot be found.
        """

    def read_shard(self, shard: Any) -> Iterator[Record]:
        """The records of a shard, in order: whole documents, the same ones every time.

        Raises:
          UserError: the shard cannot be read.
        """


@dataclasses.dataclass(frozen=True)
class GivenShards:
    """Records that are at hand, for small corpora and tests."""

    shards: tuple[tuple[Record, ...], ...]

    def list_shards(self) -> Sequence[int]:
        return range(len(self.shards))

    def read_shard(self, shard: int) -> Iterator[Record]:
        return iter(self.shards[shard])


@dataclasses.dataclass(frozen=True)
class TextShards:
    """Text files, `text:PATTERN`.

    Attributes:
      name, split: see `data.text_source`.
      shard_bytes: fewest bytes of text of a shard, but for the last.
    """

    name: str
    split: str
    shard_bytes: int = SHARD_BYTES

    def list_shards(self) -> list[list[tuple[str, int, int]]]:
        """(file, first byte, one past the last byte) of the documents of every shard."""
        shards, size = [], 0
        for file, start, stop in text_source.list_ranges(self.name, self.split):
            if not shards or size >= self.shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append((os.fspath(file), start, stop))
            size += stop - start
        return shards

    def read_shard(self, shard: list[tuple[str, int, int]]) -> Iterator[Record]:
        for file, start, stop in shard:
            yield from text_source.read_range(files.to_path(file), start, stop)


@dataclasses.dataclass(frozen=True)
class TaskShards:
    """A SeqIO task.

    Attributes:
      task, split: its name, and one of its splits.
      vocabulary: of the store.
      task_modules: the modules that register tasks; every worker imports them.
      by_shards: whether to read by the source's shards where the task cannot be read file by file.
    """

    task: str
    split: str
    vocabulary: Vocabulary
    task_modules: tuple[str, ...] = ()
    by_shards: bool = False

    def list_shards(self) -> list[str | int]:
        """Files, or numbers of shards; `[0]` for one reader."""
        parts = self._import()
        found = parts.list_files(self.task, self.split)
        return found or list(range(parts.count_shards(self.task, self.split) if self.by_shards else 1))

    def read_shard(self, shard: str | int) -> Iterator[Record]:
        parts = self._import()
        if isinstance(shard, str):
            return parts.iterate_file(self.task, self.split, shard, self.vocabulary)
        shards = parts.count_shards(self.task, self.split) if self.by_shards else 1
        return parts.iterate_shard(self.task, self.split, shard, shards, self.vocabulary)

    def _import(self) -> Any:
        import_seqio_source(self.task_modules)
        from t5x_scale.data.seqio_source import shards

        return shards


def make_shards(name: str, split: str, vocabulary: Vocabulary, task_modules: Sequence[str] = ()) -> ShardedSource:
    """The shards of a task or of text files, with the records and the order of `Catalog.records`."""
    if text_source.is_text_source(name):
        return TextShards(name, split)
    return TaskShards(name, split, vocabulary, tuple(task_modules))
