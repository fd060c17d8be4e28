"""From a few choices to a curation: which filters, signers and searches for duplicates they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from t5x_scale.core.errors import UserError
from t5x_scale.data.building.interface import Curation
from t5x_scale.data.building.work import text_of
from t5x_scale.data.catalog import Catalog
from t5x_scale.data.curation.decontamination import Decontamination
from t5x_scale.data.curation.exact_duplicates import ExactDeduplicator, ExactSigner
from t5x_scale.data.curation.filters import TokenLength, gopher_filters
from t5x_scale.data.curation.minhash import MinHashSigner
from t5x_scale.data.curation.near_duplicates import NearDeduplicator


@dataclasses.dataclass(frozen=True)
class CurationChoice:
    """What to leave out of a store.

    Attributes:
      exact_duplicates: all but the first of documents with the same text.
      near_duplicates: all but the first of documents that have this share of their n-grams in common; None for none.
      min_tokens, max_tokens: bounds of a document's length, separator not counted; None for none.
      quality: documents that the language-agnostic rules of `curation.filters.gopher_filters` refuse.
      decontaminate: documents that overlap with an evaluation task, each named `TASK:SPLIT`.
    """

    exact_duplicates: bool = False
    near_duplicates: float | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    quality: bool = False
    decontaminate: Sequence[str] = ()

    def make(self, catalog: Catalog) -> Curation:
        """The curation. The evaluation tasks are read, through the catalogue's modules and vocabulary.

        Raises:
          UserError: an evaluation task that cannot be read, or a threshold or bounds that make no sense.
        """
        self._check()
        text_filters = gopher_filters() if self.quality else ()
        if self.decontaminate:
            texts = {name: _read_texts(name, catalog) for name in self.decontaminate}
            text_filters = (*text_filters, Decontamination.from_texts(texts))
        has_bounds = self.min_tokens is not None or self.max_tokens is not None
        signers, deduplicators = [], []
        if self.exact_duplicates:
            signers.append(ExactSigner())
            deduplicators.append(ExactDeduplicator())
        if self.near_duplicates is not None:
            signers.append(MinHashSigner())
            deduplicators.append(NearDeduplicator(self.near_duplicates))
        return Curation(
            text_filters=text_filters,
            token_filters=(TokenLength(self.min_tokens, self.max_tokens),) if has_bounds else (),
            signers=tuple(signers),
            deduplicators=tuple(deduplicators),
        )

    def _check(self) -> None:
        """Raises UserError for numbers that make no sense, before anything is read."""
        for name in ("min_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"{name} is {value}; it must be 0 or more")
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UserError(
                f"min_tokens = {self.min_tokens} is above max_tokens = {self.max_tokens}: nothing would stay"
            )
        if self.near_duplicates is not None and not 0 < self.near_duplicates < 1:
            raise UserError(f"near_duplicates is {self.near_duplicates}; it is a share between 0 and 1, such as 0.8")


def _read_texts(name: str, catalog: Catalog) -> Iterator[str]:
    # A text: source has colons of its own.
    task, _, split = name.rpartition(":")
    if not task or not split or task == "text":
        raise UserError(f"'{name}' names no evaluation texts: write TASK:SPLIT, such as my_task:test")
    return (text_of(record, catalog.vocabulary) for record in catalog.documents(task, split))
