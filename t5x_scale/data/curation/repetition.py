"""Filters of texts that repeat themselves; see `curation.filters`.

Something is a repetition from its second occurrence on; the first is never counted.
"""

from __future__ import annotations

import dataclasses
import re
import zlib

import numpy as np

from t5x_scale.data.curation.text_filter import TextFilter, lines_of, outside
from t5x_scale.data.curation.words import Words, ngrams, split_spaced

_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
_COMPRESSION_LEVEL = 1


@dataclasses.dataclass(frozen=True)
class RepeatedLines(TextFilter):
    """Lines that stood before, as a share of lines (0.30) and of characters (0.20) (Gopher, table A1)."""

    most: float = 0.30
    most_characters: float = 0.20

    def __call__(self, text: str) -> str | None:
        return "repeated lines" if _has_repeats(lines_of(text), self.most, self.most_characters) else None


@dataclasses.dataclass(frozen=True)
class RepeatedParagraphs(TextFilter):
    """As `RepeatedLines`, of paragraphs, which an empty line divides (Gopher, table A1)."""

    most: float = 0.30
    most_characters: float = 0.20

    def __call__(self, text: str) -> str | None:
        paragraphs = [part.strip() for part in _PARAGRAPH_BREAK.split(text)]
        paragraphs = [part for part in paragraphs if part]
        return "repeated paragraphs" if _has_repeats(paragraphs, self.most, self.most_characters) else None


@dataclasses.dataclass(frozen=True)
class TopNgrams(TextFilter):
    """Share of characters in the most frequent n-gram of words: 0.20, 0.18, 0.16 for n of 2, 3, 4 (Gopher, table A1).

    An n-gram that occurs once is not frequent (ours): a text of five words would never pass otherwise.
    """

    sizes: tuple[int, ...] = (2, 3, 4)
    most: tuple[float, ...] = (0.20, 0.18, 0.16)

    def __call__(self, text: str) -> str | None:
        words = split_spaced(text)
        shares = (_top_share(words, size) for size in self.sizes)
        return "frequent n-gram" if any(share > most for share, most in zip(shares, self.most, strict=True)) else None


@dataclasses.dataclass(frozen=True)
class RepeatedNgrams(TextFilter):
    """Share of characters in n-grams that stood before: 0.15, 0.14 … 0.10 for n of 5, 6 … 10 (Gopher, table A1).

    A character within several such n-grams counts once.
    """

    sizes: tuple[int, ...] = (5, 6, 7, 8, 9, 10)
    most: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)

    def __call__(self, text: str) -> str | None:
        words = split_spaced(text)
        shares = (_repeated_share(words, size) for size in self.sizes)
        return "repeated n-grams" if any(share > most for share, most in zip(shares, self.most, strict=True)) else None


@dataclasses.dataclass(frozen=True)
class CompressedSize(TextFilter):
    """Size after compression (zlib, level 1) divided by the size in UTF-8, of texts of 1,000 bytes or more.

    Ours. In Python's library 98 % of the docstrings lie between 0.27 and 0.56, of the source files between 0.25 and
    0.50; below 0.15 a text repeats itself in ways that the other rules may not see. An upper bound, for random
    characters, is open (0.8 is a reasonable one). Compression as a sign of repetition: Radford et al. 2022, "Robust
    Speech Recognition via Large-Scale Weak Supervision", section 4.5.
    """

    least: float | None = 0.15
    most: float | None = None
    least_bytes: int = 1000

    def __call__(self, text: str) -> str | None:
        data = text.encode("utf-8", "surrogatepass")
        if len(data) < self.least_bytes:
            return None
        ratio = len(zlib.compress(data, _COMPRESSION_LEVEL)) / len(data)
        return outside(ratio, self.least, self.most, "bytes after compression")


def _has_repeats(parts: list[str], most: float, most_characters: float) -> bool:
    distinct = set(parts)
    characters = sum(map(len, parts))
    repeated = characters - sum(map(len, distinct))
    return len(parts) - len(distinct) > most * len(parts) or repeated > most_characters * characters


def _top_share(words: Words, size: int) -> float:
    grams = ngrams(words.hashes, size)
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    if not len(counts) or counts.max() < 2:
        return 0.0
    ends = np.cumsum(words.lengths)
    # Of n-grams that are equally frequent the longest counts.
    candidates = first[counts == counts.max()]
    lengths = ends[candidates + size - 1] - ends[candidates] + words.lengths[candidates]
    top = grams[candidates[np.argmax(lengths)]]
    return _covered(words, np.flatnonzero(grams == top), size) / int(ends[-1])


def _repeated_share(words: Words, size: int) -> float:
    grams = ngrams(words.hashes, size)
    _, first = np.unique(grams, return_index=True)
    if len(first) == len(grams):
        return 0.0
    repeated = np.ones(len(grams), bool)
    repeated[first] = False
    return _covered(words, np.flatnonzero(repeated), size) / int(words.lengths.sum())


def _covered(words: Words, positions: np.ndarray, size: int) -> int:
    """Characters of the words inside the n-grams at `positions`, each word once."""
    edges = np.zeros(len(words.lengths) + 1, np.int64)
    np.add.at(edges, positions, 1)
    np.add.at(edges, positions + size, -1)
    return int(words.lengths[np.cumsum(edges[:-1]) > 0].sum())
