"""Decontamination: documents that share n-grams of words with the texts of evaluation tasks are left out.

The rule of GPT-3 (Brown et al. 2020, appendix C): one n-gram of 13 words in common is an overlap (GPT-3 then cut out
the passage; we leave out the document). The rule of PaLM (Chowdhery et al. 2022, section 8): an evaluation text is
contaminated when at least 70 % of its 8-grams are found; ours asks that they be found in one document. Words are those
of `curation.words`, without case and punctuation, as in both papers.

The index holds 16 bytes for every n-gram of the evaluation texts, and nothing of the corpus.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.curation.words import ngrams, split_normalised


@dataclasses.dataclass(frozen=True)
class OverlapRule:
    """When a document overlaps with an evaluation text.

    Attributes:
      ngram: words of an n-gram: 13 (GPT-3) or 8 (PaLM).
      share: of the text's n-grams that must stand in the document; 0: one is enough. PaLM: 0.7.
      least_words: a text of fewer words than `ngram`, but at least this many, is one n-gram of its own length; shorter
        ones would match by chance and are left out of the index, with a count. GPT-3's least n is 8 too.
    """

    ngram: int = 13
    share: float = 0.0
    least_words: int = 8

    def __post_init__(self):
        if not (0 < self.least_words <= self.ngram and 0 <= self.share <= 1):
            raise UserError(f"no sense in {self}: least_words lies in 1 … ngram, share in 0 … 1")


PALM_RULE = OverlapRule(ngram=8, share=0.7)


@dataclasses.dataclass(frozen=True, eq=False)
class Decontamination:
    """A filter of documents; build it with `from_texts`. It can be pickled.

    Attributes:
      rule: when a document overlaps.
      tasks: names of the evaluation tasks.
      texts, short_texts: texts in the index of each task, and those too short to be told.
      lengths: the lengths of n-grams in the index, in words.
      grams, owners: for each length, the n-grams uint64 [n] in order and the text int64 [n] of each.
      needed: int64 [texts]: how many distinct n-grams of each text a document must hold to overlap.
      task_of: int64 [texts]: the task of each text.
    """

    rule: OverlapRule
    tasks: tuple[str, ...]
    texts: tuple[int, ...]
    short_texts: tuple[int, ...]
    lengths: tuple[int, ...]
    grams: tuple[np.ndarray, ...]
    owners: tuple[np.ndarray, ...]
    needed: np.ndarray
    task_of: np.ndarray

    @classmethod
    def from_texts(cls, texts: Mapping[str, Iterable[str]], rule: OverlapRule | None = None) -> Decontamination:
        """Reads the evaluation texts of each task once.

        Args:
          texts: the texts by name of their task: questions, passages, answers, each on its own or joined.
          rule: GPT-3's by default.

        Raises:
          UserError: a task without a text.
        """
        rule = rule or OverlapRule()
        builder = _Builder(rule)
        for task, found in enumerate(texts.values()):
            for text in found:
                builder.add(task, text)
        counts = [(builder.task_of.count(task), builder.short.count(task)) for task in range(len(texts))]
        for name, (indexed, short) in zip(texts, counts, strict=True):
            if not indexed + short:
                raise UserError(f"the evaluation task '{name}' has no texts to compare the corpus with")
        lengths, grams, owners = builder.columns()
        return cls(
            rule=rule,
            tasks=tuple(texts),
            texts=tuple(indexed for indexed, _ in counts),
            short_texts=tuple(short for _, short in counts),
            lengths=lengths,
            grams=grams,
            owners=owners,
            needed=np.array(builder.needed, np.int64),
            task_of=np.array(builder.task_of, np.int64),
        )

    def __call__(self, text: str) -> str | None:
        """`None` to keep the document, or "overlap with" and the task of the first evaluation text found in it."""
        words = split_normalised(text).hashes
        found = [self._owners_of(ngrams(words, length), index) for index, length in enumerate(self.lengths)]
        owners, counts = np.unique(np.concatenate([np.empty(0, np.int64), *found]), return_counts=True)
        hits = owners[counts >= self.needed[owners]]
        return f"overlap with {self.tasks[self.task_of[hits[0]]]}" if len(hits) else None

    def describe(self) -> dict[str, Any]:
        """Rule, counts by task and a hash of the index, as JSON values."""
        digest = hashlib.sha256()
        for array in (*self.grams, *self.owners, self.needed, self.task_of):
            digest.update(array.astype("<u8").tobytes())
        return {
            "filter": "Decontamination",
            **dataclasses.asdict(self.rule),
            "texts": dict(zip(self.tasks, self.texts, strict=True)),
            "texts_too_short": dict(zip(self.tasks, self.short_texts, strict=True)),
            "index": digest.hexdigest(),
        }

    def _owners_of(self, grams: np.ndarray, index: int) -> np.ndarray:
        """int64 [n]: the text of every n-gram of the index that stands among `grams`, each n-gram once."""
        known = self.grams[index]
        # Nearly no n-gram of a document is known: one search tells.
        first = np.searchsorted(known, grams)
        hit = known[np.minimum(first, len(known) - 1)] == grams
        if not hit.any():
            return np.empty(0, np.int64)
        distinct = np.unique(grams[hit])
        spans = zip(np.searchsorted(known, distinct), np.searchsorted(known, distinct, side="right"), strict=True)
        return np.concatenate([self.owners[index][start:stop] for start, stop in spans])


class _Builder:
    """Gathers the n-grams of evaluation texts by length."""

    def __init__(self, rule: OverlapRule):
        self._rule = rule
        self._grams: dict[int, list[np.ndarray]] = {}
        self._owners: dict[int, list[np.ndarray]] = {}
        self.task_of: list[int] = []
        self.needed: list[int] = []
        self.short: list[int] = []

    def add(self, task: int, text: str) -> None:
        words = split_normalised(text).hashes
        length = min(len(words), self._rule.ngram)
        if length < self._rule.least_words:
            self.short.append(task)
            return
        grams = np.unique(ngrams(words, length))
        self._grams.setdefault(length, []).append(grams)
        self._owners.setdefault(length, []).append(np.full(len(grams), len(self.task_of)))
        self.task_of.append(task)
        self.needed.append(max(1, int(np.ceil(self._rule.share * len(grams)))))

    def columns(self) -> tuple[tuple[int, ...], tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        lengths, grams, owners = tuple(sorted(self._grams)), [], []
        for length in lengths:
            together = np.concatenate(self._grams[length])
            order = np.argsort(together, kind="stable")
            grams.append(together[order])
            owners.append(np.concatenate(self._owners[length])[order])
        return lengths, tuple(grams), tuple(owners)
