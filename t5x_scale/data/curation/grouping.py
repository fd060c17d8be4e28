"""Groups of documents that are the same, of which the first stays: what all searches for duplicates share.

A search takes rounds. In each, documents with equal keys are looked at together and some of them linked; what links
connect, over all rounds, is a group. Nothing depends on how the corpus lies in parts, so one process that reads the
signatures a bucket of keys at a time (here) and a cluster that sorts by key come to the same groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

# Documents whose keys are compared at once: about 40 bytes each.
BUCKET_DOCUMENTS = 2**26
# Gives, whenever it is called, the signatures of every part in the order of the source.
Parts = Callable[[], Iterable[Mapping[str, np.ndarray]]]
# Gives an array of every part, [documents of the part, columns], whenever it is called.
Columns = Callable[[], Iterable[np.ndarray]]


class Rows:
    """The signatures of some documents, by the documents' numbers."""

    def __init__(self, documents: np.ndarray, rows: np.ndarray):
        """Args: documents int64 [n], ascending; rows [n, columns]."""
        self._documents = documents
        self._rows = rows

    @classmethod
    def gather(cls, columns: Columns, documents: np.ndarray) -> Rows:
        """Reads the rows of `documents` in one pass over the parts."""
        documents, found, offset = np.sort(documents), [], 0
        for part in columns():
            first, stop = np.searchsorted(documents, [offset, offset + len(part)])
            found.append(part[documents[first:stop] - offset])
            offset += len(part)
        return cls(documents, np.concatenate(found))

    def __getitem__(self, documents: np.ndarray) -> np.ndarray:
        """[*documents.shape, columns]."""
        return self._rows[np.searchsorted(self._documents, documents)]


class Grouping(Protocol):
    """How a search for duplicates groups documents. Numbers of documents count through the whole corpus.

    Attributes:
      array: the name of the signatures that it looks at.
      compares: whether `link` needs the signatures; if not it is given None.
    """

    array: str
    compares: bool

    def count_rounds(self, columns: int) -> int:
        """Rounds, for signatures of so many columns."""

    def keys(self, signatures: np.ndarray, round_: int, first: int) -> np.ndarray:
        """uint64 [documents, any]: keys of the documents of a part, whose first has the number `first`, in a round."""

    def link(self, documents: np.ndarray, groups: np.ndarray, rows: Rows | None) -> np.ndarray:
        """int64 [links, 2] between documents of equal keys.

        Args:
          documents: int64 [n], ascending within each group.
          groups: int64 [n], ascending: equal where keys are; a group has two documents or more.
          rows: the signatures of all of them.
        """


def keep_first(grouping: Grouping, parts: Parts, bucket_documents: int = BUCKET_DOCUMENTS) -> list[np.ndarray]:
    """bool [documents] for each part: whether a document is the first of its group, or in none."""

    def columns() -> Iterator[np.ndarray]:
        return (np.asarray(part[grouping.array]) for part in parts())

    shapes = [part.shape for part in columns()]
    if not shapes:
        return []
    counts = [shape[0] for shape in shapes]
    first = np.arange(sum(counts))
    for round_ in range(grouping.count_rounds(shapes[0][1])):
        for documents, groups in _find_equal(columns, grouping, round_, len(first), bucket_documents):
            rows = Rows.gather(columns, documents) if grouping.compares else None
            first = connect(first, grouping.link(documents, groups, rows))
    return split_by(first == np.arange(len(first)), counts)


def connect(first: np.ndarray, links: np.ndarray) -> np.ndarray:
    """Joins the groups of linked elements: union-find for all links at once (hooking and pointer jumping).

    Args:
      first: int64 [n], the first member of each element's group.
      links: int64 [m, 2] of elements.

    Returns:
      int64 [n], the first member of each element's new group.
    """
    if not len(links):
        return first
    first = first.copy()
    while True:
        roots = first[links]
        if (roots[:, 0] == roots[:, 1]).all():
            return first
        np.minimum.at(first, roots.max(axis=1), roots.min(axis=1))
        while not np.array_equal(jumped := first[first], first):
            first = jumped


def find_later(links: np.ndarray) -> np.ndarray:
    """int64 [n], ascending: the linked documents that are not the first of their group. Memory is that of the links."""
    documents, places = np.unique(links, return_inverse=True)
    first = connect(np.arange(len(documents)), places.reshape(-1, 2))
    return documents[first != np.arange(len(documents))]


def split_by(values: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """`values` [all documents] cut into parts of so many documents."""
    return np.split(values, np.cumsum(counts)[:-1])


def _find_equal(
    columns: Columns, grouping: Grouping, round_: int, documents: int, bucket_documents: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(documents, groups) as `Grouping.link` takes them, in buckets such that equal keys share one."""
    buckets = max(1, -(-documents // bucket_documents))
    for bucket in range(buckets):
        numbers, found, offset = [], [], 0
        for part in columns():
            keys = grouping.keys(part, round_, offset)
            # The high half of a hash; any 32 bits of it would do.
            mine = np.flatnonzero((keys[:, 0] >> np.uint64(32)) % np.uint64(buckets) == bucket)
            numbers.append(mine + offset)
            found.append(keys[mine])
            offset += len(part)
        together, keys = np.concatenate(numbers), np.concatenate(found)
        order = np.lexsort(keys.T)
        together, keys = together[order], keys[order]
        same = (keys[1:] == keys[:-1]).all(axis=1)
        if same.any():
            groups = np.concatenate([[0], np.cumsum(~same)])
            shared = np.concatenate([[False], same]) | np.concatenate([same, [False]])
            yield together[shared], groups[shared]
