"""Near duplicates: documents that have most of their n-grams in common, found by their MinHash signatures.

Signatures are cut into bands of rows, and documents that agree in a whole band are compared (Lee et al. 2022,
"Deduplicating Training Data Makes Language Models Better", section 4.2). Those whose signatures agree in at least the
threshold's share of places are linked; of each group that links connect, the first document stays.

Nothing depends on how the corpus lies in parts, nor on the number of workers.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.curation.equal_keys import BUCKET_DOCUMENTS, count_documents, iterate_buckets, split_by
from t5x_scale.data.curation.minhash import EMPTY, MINHASH
from t5x_scale.data.curation.words import mix

logger = logging.getLogger(__name__)

# Documents of a group of equal bands that the others of the group are compared with.
MOST_LEADERS = 64
# Pairs compared at once.
_PAIRS = 2**16
Parts = Callable[[], Iterable[Mapping[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class NearDeduplicator:
    """Keeps the first document of every group of near duplicates; needs `MinHashSigner`.

    Attributes:
      threshold: share of n-grams in common (Jaccard, as the signatures estimate it) from which on two documents count
        as the same.
      recall: least probability that a pair exactly at the threshold is compared at all; decides about bands and rows.
      bucket_documents: documents whose bands are compared at once; bounds the memory (about 40 bytes each, and the
        signatures of those that share a band with another) and changes no result.
    """

    threshold: float = 0.8
    recall: float = 0.95
    bucket_documents: int = BUCKET_DOCUMENTS

    reason: ClassVar[str] = "near duplicate"

    def __post_init__(self):
        if not (0 < self.threshold <= 1 and 0 < self.recall < 1):
            raise UserError(f"threshold and recall lie between 0 and 1, not {self.threshold} and {self.recall}")

    def __call__(self, parts: Parts) -> list[np.ndarray]:
        """Which documents to keep, bool [documents] for each part.

        Args:
          parts: gives the signatures of every part in the order of the source; called about twice for every band.
        """
        counts = count_documents(lambda: (part[MINHASH] for part in parts()))
        if not counts:
            return []
        first = self.find_groups(parts, sum(counts))
        return split_by(first == np.arange(len(first)), counts)

    def find_groups(self, parts: Parts, documents: int) -> np.ndarray:
        """int64 [documents]: the first document of the group that each belongs to, itself where it is alone."""
        first = np.arange(documents)
        places = next((part[MINHASH].shape[1] for part in parts()), 0)
        bands, rows = choose_bands(places, self.threshold, self.recall)
        for band in range(bands):
            keys = _BandKeys(parts, band * rows, rows)
            for numbers, same in iterate_buckets(keys, documents, self.bucket_documents):
                first = connect(first, self._find_links(numbers, same, parts))
        return first

    def describe(self) -> dict[str, Any]:
        """What the result depends on beside the signatures, as JSON values."""
        return {"deduplicator": "NearDeduplicator", "threshold": self.threshold, "recall": self.recall}

    def _find_links(self, documents: np.ndarray, same: np.ndarray, parts: Parts) -> np.ndarray:
        """int64 [links, 2] of documents of one bucket that share a band and agree well enough.

        All of a group are compared with its first document, those that do not agree with that with the first of
        them, and so on: a group of true duplicates costs one comparison each.
        """
        links = [np.empty((0, 2), np.int64)]
        is_shared = np.concatenate([[False], same]) | np.concatenate([same, [False]])
        group = np.cumsum(np.concatenate([[False], ~same]))[is_shared]
        left = documents[is_shared]
        signatures = _Signatures(parts, left)
        for _ in range(MOST_LEADERS):
            if not len(left):
                break
            is_first = np.concatenate([[True], group[1:] != group[:-1]])
            leaders = np.repeat(left[is_first], np.diff(np.flatnonzero(is_first), append=len(left)))
            pairs = np.stack([leaders, left], axis=1)[~is_first]
            near = self._agree(pairs, signatures)
            links.append(pairs[near])
            remaining = ~is_first
            remaining[remaining] = ~near
            left, group = left[remaining], group[remaining]
        if len(left):
            logger.warning("%d documents share a band with too many others to be compared with all", len(left))
        return np.concatenate(links)

    def _agree(self, pairs: np.ndarray, signatures: _Signatures) -> np.ndarray:
        """bool [pairs]: whether the share of equal places reaches the threshold."""
        out = np.empty(len(pairs), bool)
        for start in range(0, len(pairs), _PAIRS):
            left, right = signatures.of(pairs[start : start + _PAIRS].T)
            out[start : start + _PAIRS] = (left == right).mean(axis=1) >= self.threshold
        return out


def choose_bands(places: int, threshold: float, recall: float) -> tuple[int, int]:
    """(bands, rows of each): the most rows with which a pair at the threshold shares a band with probability `recall`.

    More rows mean fewer comparisons; those made in vain cost time and change nothing.
    """
    for rows in range(places, 1, -1):
        bands = places // rows
        if 1 - (1 - threshold**rows) ** bands >= recall:
            return bands, rows
    return places, 1


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


@dataclasses.dataclass(frozen=True)
class _BandKeys:
    """A hash of each document's band, uint64 [documents, 1] for every part."""

    parts: Parts
    start: int
    rows: int

    def __call__(self) -> Iterable[np.ndarray]:
        offset = 0
        for part in self.parts():
            band = np.asarray(part[MINHASH][:, self.start : self.start + self.rows])
            hashes = np.zeros(len(band), np.uint64)
            for place in range(self.rows):
                hashes = mix(hashes ^ band[:, place].astype(np.uint64))
            # Documents without n-grams are no copies of one another: each has a key of its own.
            empty = np.flatnonzero((band == EMPTY).all(axis=1))
            hashes[empty] = mix((empty + offset).astype(np.uint64))
            yield hashes[:, None]
            offset += len(band)


class _Signatures:
    """The signatures of some documents, gathered in one pass."""

    def __init__(self, parts: Parts, documents: np.ndarray):
        self._documents = np.sort(documents)
        rows, offset = [], 0
        for part in parts() if len(documents) else ():
            signatures = part[MINHASH]
            first, stop = np.searchsorted(self._documents, [offset, offset + len(signatures)])
            rows.append(signatures[self._documents[first:stop] - offset])
            offset += len(signatures)
        self._rows = np.concatenate(rows) if rows else np.empty((0, 0), np.uint32)

    def of(self, documents: np.ndarray) -> np.ndarray:
        """uint32 [*documents.shape, places]."""
        return self._rows[np.searchsorted(self._documents, documents)]
