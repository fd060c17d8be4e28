"""Near duplicates: documents that have most of their n-grams in common, found by their MinHash signatures.

Signatures are cut into bands of rows, and documents that agree in a whole band are compared (Lee et al. 2022,
"Deduplicating Training Data Makes Language Models Better", section 4.2). Those whose signatures agree in at least the
threshold's share of places are linked; of each group that links connect, the first document stays.

Nothing depends on how the corpus lies in parts, nor on the number of workers.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any, ClassVar

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.core.mixing import mix
from t5x_scale.data.curation.grouping import BUCKET_DOCUMENTS, Parts, Rows, keep_first
from t5x_scale.data.curation.minhash import EMPTY, MINHASH

logger = logging.getLogger(__name__)

# Documents of a group of equal bands that the others of the group are compared with.
MOST_LEADERS = 64
# Pairs compared at once.
_PAIRS = 2**16


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
    array: ClassVar[str] = MINHASH
    compares: ClassVar[bool] = True

    def __post_init__(self):
        if not (0 < self.threshold <= 1 and 0 < self.recall < 1):
            raise UserError(f"threshold and recall lie between 0 and 1, not {self.threshold} and {self.recall}")

    def __call__(self, parts: Parts) -> list[np.ndarray]:
        """Which documents to keep, bool [documents] for each part.

        Args:
          parts: gives the signatures of every part in the order of the source; called twice for every band.
        """
        return keep_first(self, parts, self.bucket_documents)

    def count_rounds(self, columns: int) -> int:
        """A round for every band; see `Grouping`."""
        return choose_bands(columns, self.threshold, self.recall)[0]

    def keys(self, signatures: np.ndarray, round_: int, first: int) -> np.ndarray:
        """A hash of the band; see `Grouping`."""
        _, rows = choose_bands(signatures.shape[1], self.threshold, self.recall)
        band = signatures[:, round_ * rows : (round_ + 1) * rows]
        hashes = np.zeros(len(band), np.uint64)
        for place in range(rows):
            hashes = mix(hashes ^ band[:, place].astype(np.uint64))
        # Documents without n-grams are no copies of one another: each has a key of its own.
        empty = np.flatnonzero((band == EMPTY).all(axis=1))
        hashes[empty] = mix((empty + first).astype(np.uint64))
        return hashes[:, None]

    def link(self, documents: np.ndarray, groups: np.ndarray, rows: Rows | None) -> np.ndarray:
        """Those that agree well enough; see `Grouping`.

        All of a group are compared with its first document, those that do not agree with that with the first of
        them, and so on: a group of true duplicates costs one comparison each.
        """
        links = [np.empty((0, 2), np.int64)]
        for _ in range(MOST_LEADERS):
            if not len(documents):
                break
            is_first = np.concatenate([[True], groups[1:] != groups[:-1]])
            leaders = np.repeat(documents[is_first], np.diff(np.flatnonzero(is_first), append=len(documents)))
            pairs = np.stack([leaders, documents], axis=1)[~is_first]
            near = self._agree(pairs, rows)
            links.append(pairs[near])
            remaining = ~is_first
            remaining[remaining] = ~near
            documents, groups = documents[remaining], groups[remaining]
        if len(documents):
            logger.warning("%d documents share a band with too many others to be compared with all", len(documents))
        return np.concatenate(links)

    def describe(self) -> dict[str, Any]:
        """What the result depends on beside the signatures, as JSON values."""
        return {"deduplicator": "NearDeduplicator", "threshold": self.threshold, "recall": self.recall}

    def _agree(self, pairs: np.ndarray, rows: Rows) -> np.ndarray:
        """bool [pairs]: whether the share of equal places reaches the threshold."""
        out = np.empty(len(pairs), bool)
        for start in range(0, len(pairs), _PAIRS):
            left, right = rows[pairs[start : start + _PAIRS].T]
            out[start : start + _PAIRS] = (left == right).mean(axis=1) >= self.threshold
        return out


@functools.cache
def choose_bands(places: int, threshold: float, recall: float) -> tuple[int, int]:
    """(bands, rows of each): the most rows with which a pair at the threshold shares a band with probability `recall`.

    More rows mean fewer comparisons; those made in vain cost time and change nothing.
    """
    for rows in range(places, 1, -1):
        bands = places // rows
        if 1 - (1 - threshold**rows) ** bands >= recall:
            return bands, rows
    return places, 1
