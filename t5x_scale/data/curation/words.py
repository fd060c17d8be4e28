"""Text cut into words without knowing its language, as arrays: one 64-bit hash and one length a word.

A word is a run of characters between separators. Letters of scripts that are written without spaces (Chinese, Japanese,
Thai, Lao, Khmer, Burmese) are words of their own, so that an n-gram of words is one of characters there. Hashes
depend on nothing but the text: they are the same in every process and on every machine.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import NamedTuple

import numpy as np

from t5x_scale.core.mixing import GOLDEN, mix

# Classes of a character.
SPACE, OTHER, IN_WORD, ALONE = range(4)
# Letters (category Lo) of scripts without spaces between words: first and last code point.
_UNSPACED = (
    (0x0E00, 0x0E7F),  # Thai
    (0x0E80, 0x0EFF),  # Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # Iteration mark and zero of Chinese
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Chinese characters, extension A
    (0x4E00, 0x9FFF),  # Chinese characters
    (0xF900, 0xFAFF),  # Chinese characters, compatibility
    (0xFF66, 0xFF9F),  # Katakana of half width
    (0x20000, 0x3FFFF),  # Chinese characters, further extensions
)
# Joiners stand inside words of Persian and of the scripts of India.
_JOINERS = (0x200C, 0x200D)
_LAST_CODE_POINT = 0x10FFFF
# Longer runs are no words (base64, DNA, text that lost its spaces): their characters are words of their own.
LONG_WORD = 40


class Words(NamedTuple):
    """hashes uint64 [n]; lengths int64 [n] in characters; alone bool [n]: a letter of a script without spaces."""

    hashes: np.ndarray
    lengths: np.ndarray
    alone: np.ndarray


def code_points(text: str) -> np.ndarray:
    """uint32 [len(text)]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def classes(text: str) -> np.ndarray:
    """uint8 [len(text)]: SPACE, OTHER (punctuation, symbols), IN_WORD (letters, marks, numbers) or ALONE."""
    return _class_table()[code_points(text)]


@functools.lru_cache(maxsize=1)
def split_spaced(text: str) -> Words:
    """Words between spaces, punctuation included, as Gopher's rules count them."""
    return _split(text, OTHER, longest=None)


def split_normalised(text: str) -> Words:
    """Words of letters and numbers alone, in one case and one Unicode form: what near copies have in common."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _split(text.casefold(), IN_WORD, longest=LONG_WORD)


def ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """uint64 [max(len(hashes) - n + 1, 0)]: a hash of every n words that follow one another."""
    count = len(hashes) - n + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    # The order of the words counts: each place of an n-gram has an odd factor of its own.
    factors = mix(np.arange(1, n + 1, dtype=np.uint64) * GOLDEN) | np.uint64(1)
    total = np.zeros(count, np.uint64)
    for place in range(n):
        total += hashes[place : place + count] * factors[place]
    return mix(total)


def _split(text: str, least: int, longest: int | None) -> Words:
    points = code_points(text)
    kinds = _class_table()[points]
    inside = kinds >= least
    points, kinds = points[inside], kinds[inside]
    if not len(points):
        return Words(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, bool))
    begins = _find_beginnings(inside, kinds)
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=len(points))
    if longest is not None and lengths.max() > longest:
        begins |= np.repeat(lengths > longest, lengths)
        starts = np.flatnonzero(begins)
        lengths = np.diff(starts, append=len(points))
    places = np.arange(len(points)) - np.repeat(starts, lengths)
    characters = mix((points.astype(np.uint64) << np.uint64(32)) + places.astype(np.uint64) + GOLDEN)
    return Words(np.add.reduceat(characters, starts), lengths, kinds[starts] == ALONE)


def _find_beginnings(inside: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """bool [characters inside words]: whether a word begins with this one."""
    after_gap = np.diff(np.flatnonzero(inside), prepend=-2) > 1
    alone = kinds == ALONE
    return after_gap | alone | np.concatenate([[False], alone[:-1]])


@functools.lru_cache(maxsize=1)
def _class_table() -> np.ndarray:
    """uint8 [1114112], read-only."""
    kinds = {"L": IN_WORD, "M": IN_WORD, "N": IN_WORD, "Z": SPACE}
    characters = map(chr, range(_LAST_CODE_POINT + 1))
    table = np.array([kinds.get(unicodedata.category(character)[0], OTHER) for character in characters], np.uint8)
    for point in range(128):
        if chr(point).isspace():
            table[point] = SPACE
    table[0x85] = SPACE
    for first, last in _UNSPACED:
        span = table[first : last + 1]
        span[span == IN_WORD] = ALONE
    for joiner in _JOINERS:
        table[joiner] = IN_WORD
    table.setflags(write=False)
    return table
