"""Filters by lengths, symbols, lines and letters; see `curation.filters`."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from typing import Any

import numpy as np

from t5x_scale.data.curation.text_filter import TextFilter, lines_of, outside
from t5x_scale.data.curation.words import code_points, split_spaced

_ELLIPSES = ("...", "…")
_BULLETS = ("•", "●", "▪", "◦", "‣", "·", "*", "-")


@dataclasses.dataclass(frozen=True)
class Length(TextFilter):
    """Characters and words of a document, both bounds included; `None` is no bound.

    50 to 100,000 words are Gopher's (appendix A.1.1); the bounds of characters are open. A bound in tokens is
    `TokenLength`.
    """

    least_words: int | None = 50
    most_words: int | None = 100_000
    least_characters: int | None = None
    most_characters: int | None = None

    def __call__(self, text: str) -> str | None:
        reason = outside(len(text), self.least_characters, self.most_characters, "characters")
        if reason or (self.least_words is None and self.most_words is None):
            return reason
        return outside(len(split_spaced(text).hashes), self.least_words, self.most_words, "words")


@dataclasses.dataclass(frozen=True)
class TokenLength:
    """Tokens of a document, its separator not counted, both bounds included; `None` is no bound. Bounds are ours."""

    least: int | None = 1
    most: int | None = None

    def __call__(self, tokens: np.ndarray) -> str | None:
        """`None` to keep the document of these ids [n], or why it is left out."""
        return outside(len(tokens), self.least, self.most, "tokens")

    def describe(self) -> dict[str, Any]:
        """Name and bounds, as JSON values."""
        return {"filter": type(self).__name__, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class MeanWordLength(TextFilter):
    """Characters a word on average: 3 to 10 (Gopher, appendix A.1.1).

    Texts of which most words are letters of scripts without spaces are kept: the rule has no meaning there (ours).
    """

    least: float = 3.0
    most: float = 10.0

    def __call__(self, text: str) -> str | None:
        words = split_spaced(text)
        if not len(words.hashes) or words.alone.mean() > 0.5:
            return None
        return outside(float(words.lengths.mean()), self.least, self.most, "characters a word")


@dataclasses.dataclass(frozen=True)
class SymbolsPerWord(TextFilter):
    """Hash signs, and ellipses, for every word: each at most 0.1 (Gopher, appendix A.1.1)."""

    most: float = 0.1

    def __call__(self, text: str) -> str | None:
        words = len(split_spaced(text).hashes)
        symbols = max(text.count("#"), sum(text.count(ellipsis) for ellipsis in _ELLIPSES))
        return "symbols for words" if symbols > self.most * words else None


@dataclasses.dataclass(frozen=True)
class EllipsisLines(TextFilter):
    """Share of lines that end in an ellipsis: at most 0.3 (Gopher, appendix A.1.1)."""

    most: float = 0.3

    def __call__(self, text: str) -> str | None:
        lines = lines_of(text)
        ended = sum(line.endswith(_ELLIPSES) for line in lines)
        return "lines ending in an ellipsis" if ended > self.most * len(lines) else None


@dataclasses.dataclass(frozen=True)
class BulletLines(TextFilter):
    """Share of lines that begin with a bullet: at most 0.9 (Gopher, appendix A.1.1; the list of signs is ours)."""

    most: float = 0.9

    def __call__(self, text: str) -> str | None:
        lines = lines_of(text)
        begun = sum(line.startswith(_BULLETS) for line in lines)
        return "lines beginning with a bullet" if begun > self.most * len(lines) else None


@dataclasses.dataclass(frozen=True)
class LetterShare(TextFilter):
    """Share of letters and marks (Unicode categories L and M) among the characters that are no space: at least 0.6.

    Ours. It stands for Gopher's "80 % of words contain an alphabetic character", which needs words. In Python's
    library 99 % of the docstrings lie above 0.78, and 99 % of the source files above 0.65.
    """

    least: float = 0.6

    def __call__(self, text: str) -> str | None:
        solid = "".join(text.split())
        if solid.isascii():
            letters = sum(map(len, re.findall("[A-Za-z]+", solid)))
        else:
            points, counts = np.unique(code_points(solid), return_counts=True)
            is_letter = [unicodedata.category(chr(point))[0] in "LM" for point in points.tolist()]
            letters = int(counts[is_letter].sum())
        return "few letters" if letters < self.least * len(solid) else None
