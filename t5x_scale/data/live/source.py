"""The training batches of a live stream: what the training loop uses, with the interface of `BatchSource`.

A live stream is read in order. It is cut into `shards`, which are part of the data's identity as the seed is: shard s
holds part s of every source, and row p of a batch of B rows comes from shard p * shards // B. A host reads the shards
its rows are in and no others, so any number of hosts gives the same bytes, and they share out the reading when there
are as many shards as hosts or more.

Global rows are counted as in a store: the rows of a step are the global rows [first_row(step), first_row(step + 1)),
dealt to the shards in turn. Row j of shard s is global row j * shards + s; randomness and skipping go by that number.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_scale.core.batch import check_batch
from t5x_scale.core.describe import digest
from t5x_scale.core.errors import UserError
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.live.examples import Place
from t5x_scale.data.live.reader import Bookmark, ShardReader
from t5x_scale.data.live.rows import RowKind, RowStream
from t5x_scale.data.mixtures.mixture_schedule import MixtureSchedule, RatePlan
from t5x_scale.data.mixtures.step_rows import StepRows
from t5x_scale.data.objectives import RowKeys
from t5x_scale.data.order import to_rows
from t5x_scale.data.resuming import check_mixture, check_parts, join_skips
from t5x_scale.data.skipping import SkipList

logger = logging.getLogger(__name__)

# Part of the format of a run: another number is another order.
ORDER_VERSION = 1
# Steps whose bookmarks are kept: more than any prefetching is ahead of the step that is saved.
_REMEMBERED = 256
# Seconds.
_LONG_SEEK = 10.0
# Beyond every row of every run.
MAX_ROW = 2**62


@dataclasses.dataclass(frozen=True)
class LiveRows:
    """The rows of one source.

    Attributes:
      make: from a shard's number to its rows, from the beginning.
      description: what the examples depend on, as JSON values.
      summary: what to say of it in logs.
    """

    make: Callable[[int], RowStream]
    description: Any
    summary: str = "live"


class LiveSource:
    """Batches of a live stream. `batch` may be called from any thread, one at a time; forward is cheap.

    Going to a step that is not the next one reads the stream up to there: from the nearest bookmark in the same pass
    over the source where one is known, from the beginning otherwise. What that costs is said once.

    Attributes:
      names: the sources.
      stores: empty: there are none.
      mixture: deals the rows of each shard to the sources.
      schedule: rows of each step.
      steps: the row at which each step begins, those before a change of the batch size included.
      length: L, positions of a row.
      seed: decides order and randomness of the rows.
      skip: global rows that are never delivered.
    """

    def __init__(
        self,
        sources: Mapping[str, LiveRows],
        rates: Mapping[str, float] | RatePlan,
        schedule: BatchSchedule,
        kind: RowKind,
        *,
        length: int,
        seed: int,
        parts: Mapping[str, Any],
        shards: int = 1,
        skip: Iterable[Sequence[int]] = (),
        process_index: int = 0,
        process_count: int = 1,
        share: Callable[[Any], list[Any]] | None = None,
        remedy: str = "tools/build_token_store.py",
    ):
        """Args:
          sources: {name: its rows}.
          rates: {name: share of the rows}, in any unit, or a plan of them by steps.
          schedule, length, seed: see the attributes.
          kind: from documents to rows, and on to fields.
          parts: what the bytes depend on beside sources, rates, `kind`, length, seed and shards, as JSON values.
          shards: how many shards the stream is cut into.
          skip: intervals [first, one past the last) of global rows, whole rows of all shards.
          process_index, process_count: this host delivers the rows of its place of so many.
          share: from a JSON value of this process to those of all; without it a checkpoint knows this process' shards.
          remedy: the command that builds token stores instead.

        Raises:
          UserError: a batch does not divide among hosts or shards, or a skipped interval among the shards.
        """
        if not isinstance(shards, int) or isinstance(shards, bool) or shards < 1:
            raise UserError(f"live_shards is {shards!r}; it must be a whole number, 1 or more")
        for rows in schedule.sizes():
            if rows % process_count:
                raise UserError(f"the batch size {rows} does not divide among {process_count} processes")
            if rows % shards:
                raise UserError(f"the batch size {rows} does not divide among live_shards = {shards}")
        self._plan = rates if isinstance(rates, RatePlan) else RatePlan.constant(rates)
        self.names = self._plan.names
        self.stores: dict[str, Any] = {}
        self.schedule = schedule
        self.length = length
        self.seed = seed
        self.skip = SkipList(skip)
        self._sources, self._kind, self._shards = {name: sources[name] for name in self.names}, kind, shards
        self._given_parts = dict(parts)
        self._process, self._share, self._remedy = (process_index, process_count), share, remedy
        self._place(StepRows(schedule), {})

    def _place(self, steps: StepRows, known: dict[int, Bookmark]) -> None:
        """What depends on where steps begin, and on what was skipped."""
        self.steps = steps
        self._skip_in_shard = self._divide(self.skip)
        pieces = [(steps.first_row(step) // self._shards, shares) for step, shares in self._plan.steps()]
        self.mixture = MixtureSchedule(pieces)
        self._lock = threading.Lock()
        self._told = False
        self._readers: dict[int, ShardReader] = {}
        self._known = known
        # {step: {shard: where it stood before that step or earlier}}, the latest steps only.
        self._marks: dict[int, dict[int, Bookmark]] = {}

    def batch(self, step: int, rows: np.ndarray | slice | None = None) -> dict[str, np.ndarray]:
        """The batch of `step`.

        Args:
          step: counted from 0.
          rows: rows of the global batch; this host's when None.

        Returns:
          The fields of `core.batch`, each [rows, L].

        Raises:
          UserError: a source has ended, cannot be read, or does not give the same examples again.
        """
        size = self._size(step)
        numbers = to_rows(self.host_rows(step) if rows is None else rows, size)
        shards = numbers * self._shards // size
        first = self.steps.first_row(step) // self._shards
        locals_ = self._skip_in_shard.to_global(first + numbers % (size // self._shards))
        with self._lock:
            materials: list[Any] = [None] * len(numbers)
            for shard in np.unique(shards).tolist():
                mine = np.flatnonzero(shards == shard)
                distinct, inverse = np.unique(locals_[mine], return_inverse=True)
                taken = self._take(shard, distinct.tolist(), step)
                for index, which in zip(mine.tolist(), inverse.tolist(), strict=True):
                    materials[index] = taken[which]
            self._remember(step + 1)
        fields = self._kind.fields(materials, RowKeys(self.seed, locals_ * self._shards + shards))
        check_batch(fields)
        return fields

    def host_rows(self, step: int) -> slice:
        """This host's rows of the global batch of `step`: hosts in order hold equal, consecutive parts."""
        index, count = self._process
        size = self._size(step) // count
        return slice(index * size, (index + 1) * size)

    def _size(self, step: int) -> int:
        return self.steps.first_row(step + 1) - self.steps.first_row(step)

    @property
    def parts(self) -> dict[str, Any]:
        """What the bytes of a row depend on beside its source, part by part, as JSON values."""
        return {
            "delivery": "live",
            "length": self.length,
            "seed": self.seed,
            "live_shards": self._shards,
            "order": ORDER_VERSION,
            **self._given_parts,
            **self._kind.parts,
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the bytes of the run depend on: equal fingerprints, equal bytes for equal rows."""
        sources = {name: source.description for name, source in self._sources.items()}
        everything = [self.parts, sources, self.mixture.digest(MAX_ROW)]
        return digest(everything)

    def state(self, step: int) -> dict[str, Any]:
        """The position before `step` as JSON: what a checkpoint keeps; see `BatchSource.state`.

        Beside that it holds where every shard stood, as far as known: after `batch(step - 1)` in this process, those
        that its rows came from. With `share`, all processes must call this together, and all shards are known.
        """
        known = {str(shard): mark.to_json() for shard, mark in self._marks.get(step, {}).items()}
        if self._share is not None:
            known = {shard: mark for part in self._share(known) for shard, mark in part.items()}
        position = self._position(step)
        return {
            "row": self.steps.first_row(step),
            "fingerprint": self.fingerprint,
            "parts": self.parts,
            "sources": self._sources_digest(position),
            "mixture": self.mixture.digest(position),
            "past": [list(pair) for pair in self.steps.until(step)],
            "skip": [list(interval) for interval in self.skip.intervals],
            "shards": dict(sorted(known.items(), key=lambda item: int(item[0]))),
        }

    def resumed(self, state: Mapping[str, Any], step: int) -> LiveSource:
        """This source, continued from the position that `state` recorded before `step`.

        What may change from here on is what may change in a `BatchSource`. Sources are read when the first batch is
        asked for; that they give what they gave is found out then.

        Raises:
          UserError: the bytes would not be those of the recorded run (the message names what differs), or the
            configuration skips rows that the run has already been through.
        """
        check_parts(self.parts, state)
        other = copy.copy(self)
        other.skip = join_skips(self.skip, state, step)
        if self.schedule.first_row(step) != state["row"]:
            other.schedule = self.schedule.anchored(step, state["row"])
        marks = {int(shard): Bookmark.from_json(mark) for shard, mark in state["shards"].items()}
        other._place(StepRows(other.schedule, state["past"]), marks)
        other._marks[step] = dict(marks)
        position = other._position(step)
        check_mixture(other.mixture.digest(position), state, step)
        if other._sources_digest(position) != state["sources"]:
            raise UserError(
                "the data differs from the checkpoint's in: sources (files, code or settings of "
                f"{', '.join(self.names)}); put the old ones back or start a new run"
            )
        return other

    def skipping(self, intervals: Iterable[Sequence[int]]) -> LiveSource:
        """This source, jumping over further intervals of global rows. `resumed` checks that they lie ahead."""
        other = copy.copy(self)
        other.skip = SkipList([*self.skip.intervals, *intervals])
        other._place(self.steps, self._known)
        return other

    @property
    def jumps(self) -> frozenset[int]:
        """The steps at which the mixture changes all at once: the level of the loss may do so, too."""
        return self._plan.jumps

    def row_interval(self, first: int, end: int) -> tuple[int, int]:
        """The global rows [first, end) that the batches of the steps [first, end) lie in."""
        begin = self._skip_in_shard.to_global(np.array([self.steps.first_row(first) // self._shards]))
        return int(begin[0]) * self._shards, self._position(end) * self._shards

    def check_enough(self, train_steps: int) -> None:
        """Nothing: how long a live stream is, nobody knows before it ends. Then `batch` says so."""

    def rows_before(self, step: int) -> dict[str, int]:
        """{name: rows that the mixture has dealt to the source before `step`, those jumped over included}."""
        return self._count(self._position(step))

    def epochs(self, step: int) -> dict[str, float]:
        """{name: passes over the source known to lie before `step`}, the mean of the shards this process reads.

        Whole passes, until one has shown how long they are. Sampled sources, and steps this process has not been at,
        count none.
        """
        positions = [mark.positions for mark in self._marks.get(step, {}).values()]
        places = {name: [mine[name].place for mine in positions if name in mine] for name in self.names}
        return {
            name: float(
                np.mean([place.epoch + place.example / (place.per_epoch or np.inf) for place in mine or [Place()]])
            )
            for name, mine in places.items()
        }

    def token_counts(self, step: int) -> dict[str, int]:
        """{name: positions delivered from the source before `step`, padding of packed rows included}, without rows
        that were jumped over.
        """
        counts = self._skip_in_shard.delivered(self.mixture.rows_before, 0, self._position(step))
        return dict(zip(self.names, (counts * self._shards * self.length).tolist(), strict=True))

    def describe(self) -> str:
        """One line for each source, for logs."""
        size = self._size(0)
        mine = len(np.unique(to_rows(self.host_rows(0), size) * self._shards // size))
        lines = [
            f"data: live, {self._given_parts.get('objective', '')}, length {self.length}, seed {self.seed}, "
            f"fingerprint {self.fingerprint[:12]}; this host reads {mine} of {self._shards} live_shards",
        ]
        shares = self.mixture.shares(0)
        lines += [
            f"  {name}: {shares.get(name, 0.0):.4f} of the tokens; {self._sources[name].summary}" for name in self.names
        ]
        return "\n".join(lines)

    def _count(self, rows: int) -> dict[str, int]:
        """Rows of each source among the first `rows` of every shard."""
        counts = self.mixture.rows_before(rows) * self._shards
        return dict(zip(self.names, counts.tolist(), strict=True))

    def _position(self, step: int) -> int:
        """One past the last row consumed before `step`, in every shard."""
        return self._skip_in_shard.end(self.steps.first_row(step) // self._shards)

    def _divide(self, skip: SkipList) -> SkipList:
        """The skipped rows of each shard."""
        for first, end in skip.intervals:
            if first % self._shards or end % self._shards:
                raise UserError(
                    f"the skipped interval ({first}, {end}) must begin and end at a multiple of live_shards = "
                    f"{self._shards}, as batches do"
                )
        return SkipList([(first // self._shards, end // self._shards) for first, end in skip.intervals])

    def _sources_digest(self, position: int) -> str:
        """Of the sources that the first rows of every shard came from: others may still be added."""
        counts = self._count(position)
        seen = {name: self._sources[name].description for name, rows in counts.items() if rows}
        return digest(seen)[:32]

    def _take(self, shard: int, rows: list[int], step: int) -> list[Any]:
        try:
            reader = self._readers.get(shard)
            if reader is not None and reader.row <= rows[0]:
                return reader.take(rows)
            return self._open(shard, rows[0], step).take(rows)
        except BaseException:
            # It may stand between two rows; the next call begins anew.
            self._readers.pop(shard, None)
            raise

    def _open(self, shard: int, row: int, step: int) -> ShardReader:
        """A reader of a shard that stands before `row`."""
        reader = ShardReader({name: self._maker(name, shard) for name in self.names}, self.mixture)
        self._readers[shard] = reader
        if not row:
            return reader
        marks = [self._known.get(shard, Bookmark()), *(marks.get(shard, Bookmark()) for marks in self._marks.values())]
        mark = max((mark for mark in marks if mark.row <= row), key=lambda mark: mark.row, default=Bookmark())
        self._tell(shard, step, mark)
        begin = time.perf_counter()
        reader.seek(mark)
        reader.advance(row)
        seconds = time.perf_counter() - begin
        # Whoever had to wait is told when it is over.
        level = logging.WARNING if seconds > _LONG_SEEK else logging.INFO
        logger.log(level, "shard %d of the live stream is at row %d after %.1f s", shard, row, seconds)
        return reader

    def _maker(self, name: str, shard: int) -> Callable[[], RowStream]:
        return lambda: self._sources[name].make(shard)

    def _tell(self, shard: int, step: int, mark: Bookmark) -> None:
        if self._told or self._process[0] or (mark.row and not mark.examples):
            return
        self._told = True
        logger.warning(
            "seeking to step %d of a live stream reads %s again%s; a token store seeks at once: build it with: %s",
            step,
            f"{mark.examples:,} examples" if mark.row else "the stream from its beginning",
            f" in shard {shard}, and likewise in the other shards" if self._shards > 1 else "",
            self._remedy,
        )

    def _remember(self, step: int) -> None:
        row = self.steps.first_row(step) // self._shards
        limit = int(self._skip_in_shard.to_global(np.array([row]))[0])
        # A reader of rows that this batch had none of may stand further on.
        self._marks[step] = {shard: reader.bookmark() for shard, reader in self._readers.items() if reader.row <= limit}
        while len(self._marks) > _REMEMBERED:
            del self._marks[next(iter(self._marks))]
