"""What goes into a build: records of the source, filters, signatures and searches for duplicates.

A build passes over a document in this order:

    text filters  →  tokeniser  →  token filters  →  signers      in a worker, one document at a time
    deduplicators                                                 once, over the signatures of the whole corpus

All of them must be picklable, and their answers must depend on nothing but their arguments: a build that is killed
and goes on, with another number of workers, gives the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

# Text as `str`, text as UTF-8 of which bad bytes become U+FFFD and are counted, or ids, integer [n].
Piece = str | bytes | np.ndarray
# Of one part of the corpus: by name, an array [documents of the part, ...].
Signatures = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Record:
    """A document of the source, or a stretch of one that is too long to be held.

    Attributes:
      targets: the document (of a supervised task, its targets) in pieces that are tokenised apart, in order.
      inputs: of a supervised task, what stands before the targets.
      ends: whether the document ends here; if not, the next record goes on with it.
    """

    targets: tuple[Piece, ...]
    inputs: Piece | None = None
    ends: bool = True

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All of the record in the order of its text: inputs, if there are any, then targets."""
        return self.targets if self.inputs is None else (self.inputs, *self.targets)


class Described(Protocol):
    """What has a part in the content of a store says so in the store's manifest."""

    def describe(self) -> Mapping[str, Any]:
        """Name and settings, as JSON values."""


class TextFilter(Described, Protocol):
    """Looks at the text of a document: of a supervised one inputs and targets joined, of ids the decoded text."""

    def __call__(self, text: str) -> str | None:
        """`None` to keep the document, or the reason for leaving it out, under which it is counted."""


class TokenFilter(Described, Protocol):
    """Looks at the ids of a document, int32 [n], without its separator."""

    def __call__(self, tokens: np.ndarray) -> str | None:
        """As `TextFilter`."""


class Signer(Described, Protocol):
    """Sums up the text of a document in a few numbers by which duplicates are found.

    Attributes:
      arrays: by name, the dtype and the shape of what one document gives: `{"hash": ("<u8", (2,))}`.
    """

    arrays: Mapping[str, tuple[str, tuple[int, ...]]]

    def __call__(self, text: str) -> Signatures:
        """One value for every name in `arrays`."""


class Deduplicator(Described, Protocol):
    """Decides which documents of the whole corpus stay. Of a group of duplicates the first one does.

    Attributes:
      reason: what the documents left out are counted under: "exact duplicate".
    """

    reason: str

    def __call__(self, parts: Callable[[], Iterable[Signatures]]) -> Sequence[np.ndarray]:
        """Which documents to keep.

        Args:
          parts: gives, each time it is called, the signatures of every part in the order of the source.

        Returns:
          For every part a bool array [documents of the part].
        """


@dataclasses.dataclass(frozen=True)
class Curation:
    """What is left out of a corpus.

    Attributes:
      text_filters, token_filters: asked in order; the first that has a reason counts.
      signers: what the deduplicators need.
      deduplicators: each looks at all documents that passed the filters; who finds a duplicate first counts it.
    """

    text_filters: tuple[TextFilter, ...] = ()
    token_filters: tuple[TokenFilter, ...] = ()
    signers: tuple[Signer, ...] = ()
    deduplicators: tuple[Deduplicator, ...] = ()

    @property
    def is_active(self) -> bool:
        """Whether anything is looked at. If so documents are held whole, however long they are."""
        return bool(self.text_filters or self.token_filters or self.signers or self.deduplicators)

    def describe(self) -> dict[str, list[Mapping[str, Any]]]:
        """By kind, as JSON values; `{}` where nothing is left out."""
        kinds = ("text_filters", "token_filters", "signers", "deduplicators")
        return {kind: [dict(one.describe()) for one in getattr(self, kind)] for kind in kinds if getattr(self, kind)}
