"""From examples to documents: tokenised in batches, each with the places around it."""

from __future__ import annotations

import collections
import logging
from typing import NamedTuple

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.live.examples import Document, Example, ExampleStream, Place

logger = logging.getLogger(__name__)

# Bytes of text given to the tokenizer at once: few where a stream begins, so that it begins soon, then more.
FIRST_BYTES, BATCH_BYTES = 2**12, 2**20
# Examples without a token in a row after which a source is taken for empty.
MOST_EMPTY = 1_000_000


class PlacedDocument(NamedTuple):
    """A document and where it stood.

    Attributes:
      tokens: int32 [n], the separator at the end included.
      target_start: index of the first token to be learnt.
      before, after: the places around its example.
    """

    tokens: np.ndarray
    target_start: int
    before: Place
    after: Place


class Tally:
    """Counts what a stream leaves out, and says so: the first time, and whenever it has become ten times as much.

    Attributes:
      count: so far; what is read again is counted again.
    """

    def __init__(self, stream: str, what: str, level: int = logging.WARNING):
        """Args: stream: its name; what: "examples without tokens"; level: of the log."""
        self.count = 0
        self._level = level
        self._stream, self._what, self._next = stream, what, 1

    def add(self, count: int) -> None:
        """So many more."""
        self.count += count
        if self.count >= self._next:
            self._next = 10 * self.count
            logger.log(self._level, "'%s': %d %s were left out so far", self._stream, self.count, self._what)


class DocumentStream:
    """The documents of a stream of examples, without end; examples without tokens are left out.

    It reads ahead of what it has given. What goes wrong ahead is raised when it is reached, so that reading ahead does
    not show.

    Attributes:
      examples: the stream.
      place: behind the last document given.
      empty: tally of the examples left out because they had no tokens.
    """

    def __init__(self, examples: ExampleStream, separator: int):
        self.examples = examples
        self.place = examples.place
        self.empty = Tally(examples.name, "examples without tokens", logging.INFO)
        self._separator = separator
        self._ready: collections.deque[PlacedDocument] = collections.deque()
        self._error: UserError | None = None
        self._empty_in_a_row = 0
        self._batch_bytes = FIRST_BYTES

    def __next__(self) -> PlacedDocument:
        """The next document.

        Raises:
          UserError: the stream has ended or cannot be read.
        """
        while not self._ready:
            if self._error is not None:
                raise self._error
            self._read_batch()
        document = self._ready.popleft()
        self.place = document.after
        return document

    def seek(self, place: Place) -> None:
        """Continues from `place`; examples before it are read but not tokenised.

        Raises:
          UserError: as `ExampleStream.seek`.
        """
        self._ready.clear()
        self._error = None
        self._batch_bytes = FIRST_BYTES
        self.examples.seek(place)
        self.place = place

    def _read_batch(self) -> None:
        batch: list[tuple[int, Example, Place, Place]] = []
        size = 0
        try:
            while size < self._batch_bytes:
                before = self.examples.place
                number, example = next(self.examples)
                after = self.examples.place
                size += sum(len(feature) for feature in example) + 1
                if after.epoch != before.epoch:
                    before = Place(after.epoch, 0, "", after.per_epoch)
                    # Beginning a pass may cost more than all of a small source's examples: one at a time.
                    size = self._batch_bytes
                batch.append((number, example, before, after))
        except UserError as error:
            self._error = error
        self._batch_bytes = min(2 * self._batch_bytes, BATCH_BYTES)
        documents = self._encode(batch)
        for document, (_, _, before, after) in zip(documents, batch, strict=True):
            if len(document.tokens):
                self._ready.append(PlacedDocument(self._close(document), document.target_start, before, after))
        self.empty.add(len(batch) - len(self._ready))
        self._empty_in_a_row = 0 if self._ready else self._empty_in_a_row + len(batch)
        whole_pass = batch and batch[-1][3].epoch > 0 and self._empty_in_a_row > 2 * batch[-1][3].per_epoch
        if whole_pass or self._empty_in_a_row > MOST_EMPTY:
            raise UserError(f"'{self.examples.name}': {self._empty_in_a_row} examples in a row have no tokens")

    def _encode(self, batch: list[tuple[int, Example, Place, Place]]) -> list[Document]:
        documents: dict[int, Document] = {}
        for number in sorted({entry[0] for entry in batch}):
            mine = [index for index, entry in enumerate(batch) if entry[0] == number]
            encoded = self.examples.sources[number].encode([batch[index][1] for index in mine])
            documents.update(zip(mine, encoded, strict=True))
        return [documents[index] for index in range(len(batch))]

    def _close(self, document: Document) -> np.ndarray:
        """With the separator, which is not doubled where targets end in it: as in a token store."""
        tokens = document.tokens
        if tokens[-1] == self._separator and len(tokens) > document.target_start:
            return tokens
        return np.append(tokens, np.int32(self._separator))
