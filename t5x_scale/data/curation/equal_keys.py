"""Finds equal keys among documents that lie in many parts, a share of the keys at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

# Documents whose keys are compared at once: about 40 bytes each.
BUCKET_DOCUMENTS = 2**26
# Gives the keys of every part, uint64 [documents of the part, columns], in the order of the source; called repeatedly.
Keys = Callable[[], Iterable[np.ndarray]]


def count_documents(keys: Keys) -> list[int]:
    """Documents of every part."""
    return [len(part) for part in keys()]


def iterate_buckets(
    keys: Keys, documents: int, bucket_documents: int = BUCKET_DOCUMENTS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The documents in buckets such that equal keys share one; memory is that of a bucket.

    Args:
      keys: read once for every bucket.
      documents: how many there are.
      bucket_documents: how many a bucket should have, about.

    Yields:
      (documents int64 [n], numbered across all parts; same bool [n - 1]: whether a document's key is that of the
      one before), ordered so that documents of equal keys follow one another in their own order.
    """
    buckets = max(1, -(-documents // bucket_documents))
    for bucket in range(buckets):
        numbers, found, offset = [], [], 0
        for part in keys():
            # The high half of a hash; any 32 bits of it would do.
            mine = np.flatnonzero((part[:, 0] >> np.uint64(32)) % np.uint64(buckets) == bucket)
            numbers.append(mine + offset)
            found.append(part[mine])
            offset += len(part)
        together = np.concatenate(found)
        if len(together) < 2:
            continue
        order = np.lexsort(together.T)
        together = together[order]
        yield np.concatenate(numbers)[order], (together[1:] == together[:-1]).all(axis=1)


def split_by(values: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """`values` [all documents] cut into parts of so many documents."""
    return np.split(values, np.cumsum(counts)[:-1])
