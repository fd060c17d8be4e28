"""Tokens to text while they arrive, never half a character."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from t5x_scale.data.vocabulary import Vocabulary

# What decoders write for bytes that are not, or not yet, a character.
_REPLACEMENT = "\ufffd"
# Decoding begins again once so many tokens have piled up, so that a stream costs linear time. The last ones stay:
# how a token is written may depend on those before it (the space at the beginning of a word).
_WINDOW = 256
_KEPT = 32


class TextStream:
    """Turns the tokens of one completion into text, piece by piece.

    A character may be spelled by several tokens (byte fallback): its text comes out with its last token. The pieces
    joined, `flush` included, are `decode(context + tokens)` without what `decode(context)` gives.
    """

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int] = (), window: int = _WINDOW, kept: int = _KEPT):
        """Begins after `context`, the tokens of the prompt, which are not written again."""
        self._vocabulary = vocabulary
        self._window, self._kept = window, kept
        self._ids = list(context)[-kept:] if kept else []
        # What of the text of `_ids` is written already.
        self._written = vocabulary.decode(self._ids)

    def push(self, ids: Iterable[int]) -> str:
        """The text that is certain once `ids` have arrived; it never ends within a character."""
        self._ids += ids
        text = self._vocabulary.decode(self._ids)
        certain = text.rstrip(_REPLACEMENT)
        if not certain.startswith(self._written):
            return ""
        new = certain[len(self._written) :]
        self._written = certain
        if len(self._ids) > self._window and certain == text:
            self._shorten()
        return new

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character, as U+FFFD."""
        text = self._vocabulary.decode(self._ids)
        new = text[len(self._written) :]
        self._written = text
        return new

    def _shorten(self) -> None:
        ids = self._ids[len(self._ids) - self._kept :]
        written = self._vocabulary.decode(ids)
        if not written.endswith(_REPLACEMENT):
            self._ids, self._written = ids, written
