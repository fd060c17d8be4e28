"""Exact duplicates: documents of the same text, told by 128 bits of a hash.

With a billion documents the chance that any two different ones share a hash is below 10^-20.
"""

from __future__ import annotations

import dataclasses
import hashlib
import unicodedata
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from t5x_scale.data.curation.grouping import BUCKET_DOCUMENTS, Parts, Rows, keep_first

TEXT_HASH = "text_hash"


@dataclasses.dataclass(frozen=True)
class ExactSigner:
    """Hashes a text, after taking away what does not count.

    Attributes:
      ignore_space: runs of white space count as one space, those at the ends as nothing; nor does the Unicode form
        count (NFC).
      ignore_case: upper and lower case count as the same.
    """

    ignore_space: bool = True
    ignore_case: bool = False

    arrays: ClassVar[Mapping[str, tuple[str, tuple[int, ...]]]] = {TEXT_HASH: ("<u8", (2,))}

    def __call__(self, text: str) -> dict[str, np.ndarray]:
        """`text_hash`, uint64 [2]: equal for equal texts."""
        if self.ignore_space:
            text = " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())
        if self.ignore_case:
            text = text.casefold()
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return {TEXT_HASH: np.frombuffer(digest, "<u8")}

    def describe(self) -> dict[str, Any]:
        """Hash and normalisation, as JSON values."""
        return {"signer": "ExactSigner", "hash": "blake2b-128", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class ExactDeduplicator:
    """Keeps the first of the documents that `ExactSigner` gave the same hash.

    Attributes:
      bucket_documents: documents compared at once; bounds the memory (about 40 bytes each) and changes no result.
    """

    bucket_documents: int = BUCKET_DOCUMENTS

    reason: ClassVar[str] = "exact duplicate"
    array: ClassVar[str] = TEXT_HASH
    compares: ClassVar[bool] = False

    def __call__(self, parts: Parts) -> list[np.ndarray]:
        """Which documents to keep, bool [documents] for each part.

        Args:
          parts: gives the signatures of every part in the order of the source; called once for every bucket.
        """
        return keep_first(self, parts, self.bucket_documents)

    def count_rounds(self, columns: int) -> int:
        """One; see `Grouping`."""
        return 1

    def keys(self, signatures: np.ndarray, round_: int, first: int) -> np.ndarray:
        """The whole hash; see `Grouping`."""
        return signatures

    def link(self, documents: np.ndarray, groups: np.ndarray, rows: Rows | None) -> np.ndarray:
        """Each with the one before it; see `Grouping`."""
        return np.stack([documents[:-1], documents[1:]], axis=1)[groups[1:] == groups[:-1]]

    def describe(self) -> dict[str, Any]:
        """What the result depends on beside the signatures: nothing."""
        return {"deduplicator": "ExactDeduplicator"}
