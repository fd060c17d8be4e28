"""The examples of a live stream: a source gone through again and again, or several of them sampled.

A stream always knows where it stands (`Place`), and can be put back there: by reading the pass again up to that place.
What was read is part of the place, as a checksum, so a source that does not give the same examples twice is noticed.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.order import order_key

# The features of one example, text as bytes or ids as integers [n].
Example = tuple[bytes | np.ndarray, ...]
_CHECKSUM_BYTES = 8
# Numbers drawn at once.
_DRAWS = 4096


class Document(NamedTuple):
    """What an example says in tokens.

    Attributes:
      tokens: int32 [n]; inputs and targets joined, for supervised documents.
      target_start: index of the first token to be learnt.
    """

    tokens: np.ndarray
    target_start: int = 0


class ExampleSource(Protocol):
    """Where examples come from.

    Attributes:
      name: of the source.
      description: what its examples depend on, as JSON values.
    """

    name: str
    description: Mapping[str, Any]

    def open(self, epoch: int, shard: int, shards: int) -> Iterator[Example]:
        """One pass over a shard; the same arguments give the same examples in the same order.

        Raises:
          UserError: what cannot be read; the pass has ended then.
        """
        ...

    def encode(self, examples: Sequence[Example]) -> list[Document]:
        """The examples as documents, one for one; one without tokens has none."""
        ...


class Place(NamedTuple):
    """A place between two examples of a stream.

    Attributes:
      epoch: passes that lie behind.
      example: examples of this pass that lie behind.
      checksum: of these, hexadecimal.
      per_epoch: examples of a whole pass; 0 where none has been finished.
    """

    epoch: int = 0
    example: int = 0
    checksum: str = ""
    per_epoch: int = 0


class ExampleStream(abc.ABC):
    """An endless iterator over (number of the source among `sources`, example) that knows its place.

    Attributes:
      name: what the stream is called in messages.
      sources: whose examples it holds.
      place: behind the last example.
      total_read: examples read so far, those read again included.
    """

    def __init__(self, name: str, sources: Sequence[ExampleSource]):
        self.name = name
        self.sources = tuple(sources)
        self.place = Place()
        self.total_read = 0
        self._checksum = b""

    def __iter__(self) -> ExampleStream:
        return self

    def __next__(self) -> tuple[int, Example]:
        number, example = self._read()
        self.total_read += 1
        epoch, per_epoch = self._pass()
        if epoch != self.place.epoch:
            self.place, self._checksum = Place(epoch, 0, "", per_epoch), b""
        self._checksum = _extend(self._checksum, number, example)
        self.place = Place(epoch, self.place.example + 1, self._checksum.hex(), per_epoch)
        return number, example

    def seek(self, place: Place) -> None:
        """Continues from `place`, by reading its pass again up to there.

        Raises:
          UserError: the examples are not those that `place` was recorded with.
        """
        self._begin(place.epoch, place.per_epoch)
        self.place, self._checksum = Place(place.epoch, 0, "", place.per_epoch), b""
        while self.place.example < place.example:
            try:
                next(self)
            except EndOfStreamError:
                break
            if self.place.epoch != place.epoch:
                break
        if self.place != place:
            raise UserError(
                f"'{self.name}' does not give the same examples again: of the {place.example} read before, in pass "
                f"{place.epoch + 1}, some changed, moved or are missing. Put the data back as it was, make the source "
                "repeatable (no shuffling or drawing without a fixed seed), or train from a token store"
            )

    @abc.abstractmethod
    def _read(self) -> tuple[int, Example]:
        """The next example."""

    @abc.abstractmethod
    def _pass(self) -> tuple[int, int]:
        """`Place.epoch` and `Place.per_epoch` of the last example read."""

    @abc.abstractmethod
    def _begin(self, epoch: int, per_epoch: int) -> None:
        """Goes to the beginning of a pass."""


class EndOfStreamError(UserError):
    """The stream was gone through as often as it may be."""


class RepeatedExamples(ExampleStream):
    """A source's shard, pass after pass, each shuffled anew."""

    def __init__(
        self,
        source: ExampleSource,
        shard: int = 0,
        shards: int = 1,
        *,
        seed: int = 0,
        shuffle_buffer: int = 0,
        max_epochs: float | None = None,
    ):
        """Args:
        source: of the examples.
        shard, shards: which part of the source.
        seed: of the order.
        shuffle_buffer: examples among which the next one is drawn; 0 is the source's own order.
        max_epochs: passes after which the stream ends, at least 1; None is without end.
        """
        super().__init__(source.name, [source])
        self._source, self._shard, self._shards = source, shard, shards
        self._seed, self._buffer, self._max_epochs = seed, shuffle_buffer, max_epochs
        self._begin(0, 0)

    def _begin(self, epoch: int, per_epoch: int) -> None:
        self._epoch, self._per_epoch, self._in_pass = epoch, per_epoch, 0
        self._examples: Iterator[Example] | None = None

    def _pass(self) -> tuple[int, int]:
        return self._epoch, self._per_epoch

    def _read(self) -> tuple[int, Example]:
        while True:
            self._check_cap()
            if self._examples is None:
                self._examples = self._open()
            example = next(self._examples, None)
            if example is not None:
                self._in_pass += 1
                return 0, example
            if not self._in_pass:
                part = f"shard {self._shard} of {self._shards} of " if self._shards > 1 else ""
                hint = ": lower live_shards" if self._shards > 1 else ""
                raise UserError(f"{part}'{self.name}' has no examples{hint}")
            self._begin(self._epoch + 1, self._per_epoch or self._in_pass)

    def _open(self) -> Iterator[Example]:
        examples = self._source.open(self._epoch, self._shard, self._shards)
        if self._buffer < 2:
            return iter(examples)
        return _shuffled(examples, self._buffer, order_key(self._seed, self._epoch, f"{self.name}/{self._shard}"))

    def _check_cap(self) -> None:
        if self._max_epochs is None or not self._epoch:
            return
        if self._epoch * self._per_epoch + self._in_pass >= self._max_epochs * self._per_epoch:
            part = f"shard {self._shard} of {self._shards} of " if self._shards > 1 else ""
            raise EndOfStreamError(
                f"the live stream has ended: {part}'{self.name}' has {self._per_epoch} examples and was gone through "
                f"max_epochs = {self._max_epochs:g} times; raise MAX_EPOCHS, lower TRAIN_STEPS or the source's rate, "
                "or add data"
            )


class SampledExamples(ExampleStream):
    """Several streams, the source of every example drawn by rates: the meaning that SeqIO gives a mixture.

    Each stream goes on for itself: one that ends a pass early begins its next one. A place counts the examples of all
    of them as one long pass.
    """

    def __init__(
        self, name: str, streams: Sequence[RepeatedExamples], rates: Sequence[float], *, seed: int, shard: int
    ):
        """Args:
        name: of the mixture.
        streams: of the same shard.
        rates: examples of each stream, in any unit, each positive.
        seed: of the draws.
        shard: which shard.
        """
        super().__init__(name, [source for stream in streams for source in stream.sources])
        self._streams, self._seed, self._shard = list(streams), seed, shard
        bounds = np.cumsum(np.asarray(rates, np.float64))
        self._bounds = bounds / bounds[-1]
        self._begin(0, 0)

    def _begin(self, epoch: int, per_epoch: int) -> None:
        del epoch, per_epoch
        self._drawn, self._count = [], 0
        for stream in self._streams:
            stream._begin(0, 0)

    def _pass(self) -> tuple[int, int]:
        return 0, 0

    def _read(self) -> tuple[int, Example]:
        block, index = divmod(self._count, _DRAWS)
        if not index:
            words = np.random.Philox(key=order_key(self._seed, block, f"{self.name}/{self._shard}/draws"))
            points = words.random_raw(_DRAWS) / 2.0**64
            self._drawn = np.searchsorted(self._bounds[:-1], points, side="right").tolist()
        number = self._drawn[index]
        _, example = self._streams[number]._read()
        self._count += 1
        return number, example


def _extend(checksum: bytes, number: int, example: Example) -> bytes:
    """The checksum of all examples before, and this one."""
    digest = hashlib.blake2b(checksum, digest_size=_CHECKSUM_BYTES)
    digest.update(b"%d" % number)
    for feature in example:
        content = feature if isinstance(feature, bytes) else np.ascontiguousarray(feature, "<i8").tobytes()
        digest.update(b"%c%d:" % (b"t" if isinstance(feature, bytes) else b"i", len(content)))
        digest.update(content)
    return digest.digest()


def _shuffled(examples: Iterator[Example], size: int, key: int) -> Iterator[Example]:
    """Each example is drawn among `size`; its place is taken by the next one of the source."""
    draws = _draw(key)
    held: list[Example] = []
    for example in examples:
        if len(held) < size:
            held.append(example)
            continue
        index = next(draws) % size
        drawn, held[index] = held[index], example
        yield drawn
    while held:
        index = next(draws) % len(held)
        held[index], held[-1] = held[-1], held[index]
        yield held.pop()


def _draw(key: int) -> Iterator[int]:
    words = np.random.Philox(key=key)
    while True:
        yield from words.random_raw(_DRAWS).tolist()
