"""Exact duplicates: documents of the same text, told by 128 bits of a hash.

With a billion documents the chance that any two different ones share a hash is below 10^-20.
"""

from __future__ import annotations

import dataclasses
import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from t5x_scale.data.curation.equal_keys import BUCKET_DOCUMENTS, count_documents, iterate_buckets, split_by

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

    def __call__(self, parts: Callable[[], Iterable[Mapping[str, np.ndarray]]]) -> list[np.ndarray]:
        """Which documents to keep, bool [documents] for each part.

        Args:
          parts: gives the signatures of every part in the order of the source; called once for every bucket.
        """

        def keys() -> Iterable[np.ndarray]:
            return (np.asarray(part[TEXT_HASH]) for part in parts())

        counts = count_documents(keys)
        if not counts:
            return []
        keep = np.ones(sum(counts), bool)
        for documents, same in iterate_buckets(keys, len(keep), self.bucket_documents):
            keep[documents[1:][same]] = False
        return split_by(keep, counts)

    def describe(self) -> dict[str, Any]:
        """What the result depends on beside the signatures: nothing."""
        return {"deduplicator": "ExactDeduplicator"}
