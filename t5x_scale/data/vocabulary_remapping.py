"""From one vocabulary to another: which id was which, and of what old pieces a new one is made."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from t5x_scale.data.vocabulary import Vocabulary

# A token that has several is taken for the last of them: where one token ends and begins documents, it ends them.
_ROLES = ("unk", "pad", "bos", "eod", "eos")


def remap_pieces(old: Vocabulary, new: Vocabulary) -> np.ndarray:
    """int64 [new.size]: for each id of `new` the id of `old` that means the same, or -1.

    Pieces are compared by the bytes they stand for, so that `\u2581the`, `\u0120the` and " the" are one piece however
    their kind of vocabulary writes a space, and `<0x0A>` is the line end of another. A byte that a vocabulary keeps for
    what it has no piece for is mapped to such a byte, and only where there is none to a piece. Control tokens are
    compared by name, and those of one role (the end of text, say) by role where the name is not found.
    """
    pieces, fallback = _spellings(old)
    controls = _controls(old, new)
    mapping = np.full(new.size, -1, np.int64)
    for index in range(new.size):
        spelling = new.spelling(index)
        if spelling is None:
            mapping[index] = controls.get(index, -1)
        else:
            first, second = (fallback, pieces) if new.is_byte(index) else (pieces, fallback)
            mapping[index] = first.get(spelling, second.get(spelling, -1))
    return mapping


@functools.lru_cache(maxsize=4)
def _spellings(vocabulary: Vocabulary) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """Ids by what they stand for: pieces, and bytes kept for what has none. Of equals the lowest id."""
    pieces: dict[bytes, int] = {}
    fallback: dict[bytes, int] = {}
    for index in range(vocabulary.size):
        spelling = vocabulary.spelling(index)
        if spelling is not None:
            (fallback if vocabulary.is_byte(index) else pieces).setdefault(spelling, index)
    return pieces, fallback


def _controls(old: Vocabulary, new: Vocabulary) -> dict[int, int]:
    by_role = {getattr(new, f"{role}_id"): getattr(old, f"{role}_id") for role in _ROLES}
    found = {index: other for index, other in by_role.items() if index is not None and other is not None}
    for index in range(new.size):
        name = new.piece(index)
        if new.control_id(name) == index and old.control_id(name) is not None:
            found[index] = old.control_id(name)
    return found


def subword_ids(old: Vocabulary, text: str | bytes) -> list[int]:
    """Ids of `old` that spell `text` in the middle of a text: what the embedding of a new piece can be the mean of.

    Args:
      old: the vocabulary that has embeddings.
      text: what the new piece stands for (`Vocabulary.spelling`); it need not be whole characters.

    Returns:
      Ids whose spellings, one after another, are `text`. Where `old` normalises text so that there are none, the
      nearest it comes: the ids it encodes the text to. Empty if it has nothing but its unknown token.
    """
    content = text.encode() if isinstance(text, str) else bytes(text)
    for ids in _candidates(old, content):
        if _spell(old, ids) == content:
            return ids
    ids = _encode(old, content)
    return [index for index in ids if old.spelling(index) is not None]


def _candidates(old: Vocabulary, content: bytes) -> Iterator[list[int]]:
    """Encodings with and without the space that many vocabularies put in front of every text, and byte by byte."""
    yield _encode(old, content)
    if content.startswith(b" "):
        yield _encode(old, content[1:])
    # Behind a line end nothing is put in front.
    before, behind = _encode(old, b"\n"), _encode(old, b"\n" + content)
    if behind[: len(before)] == before:
        yield behind[len(before) :]
    pieces, fallback = _spellings(old)
    single = (bytes([byte]) for byte in content)
    yield [fallback.get(byte, pieces.get(byte, -1)) for byte in single]


def _encode(vocabulary: Vocabulary, content: bytes) -> list[int]:
    try:
        return vocabulary.encode(content.decode())
    except UnicodeDecodeError:
        return []


def _spell(vocabulary: Vocabulary, ids: Sequence[int]) -> bytes | None:
    spellings = [vocabulary.spelling(index) if index >= 0 else None for index in ids]
    return None if None in spellings else b"".join(spellings)
