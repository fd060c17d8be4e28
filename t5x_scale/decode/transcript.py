"""Completions on their way to people: text that appears as it is made, and records for a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TextIO

from t5x_scale.data.vocabulary import Vocabulary
from t5x_scale.decode.generation import Piece
from t5x_scale.decode.text_stream import TextStream

# Pictures of control characters, those above ASCII included: a model must not be able to steer a terminal.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class Transcript:
    """Collects the pieces of all completions and writes them, in the order of the prompts, to `out`.

    The first prompt that is not finished is written live; what comes for later ones waits for its turn.
    """

    def __init__(
        self, texts: Sequence[str], prompts: Sequence[Sequence[int]], vocabulary: Vocabulary, out: TextIO | None = None
    ):
        """Args:
        texts: the prompts.
        prompts: their tokens.
        vocabulary: of the model.
        out: where to write; None writes nothing.
        """
        self._texts, self._out = texts, out
        self._streams = [TextStream(vocabulary, prompt) for prompt in prompts]
        self._completions: list[list[str]] = [[] for _ in prompts]
        self._tokens: list[list[int]] = [[] for _ in prompts]
        self._scores = [0.0] * len(prompts)
        self._finishes: list[str | None] = [None] * len(prompts)
        self._current = 0
        self._begin()

    def add(self, piece: Piece) -> None:
        """Takes new tokens of one prompt."""
        row = piece.row
        text = self._streams[row].push(piece.tokens)
        if piece.finish is not None:
            text += self._streams[row].flush()
        self._completions[row].append(text)
        self._tokens[row] += piece.tokens
        self._scores[row] += piece.log_probability
        self._finishes[row] = piece.finish
        if row == self._current:
            self._write(text)
            self._advance()

    @property
    def num_tokens(self) -> int:
        """New tokens so far."""
        return sum(map(len, self._tokens))

    def records(self) -> list[dict[str, Any]]:
        """One record a prompt: prompt, completion, tokens, finish_reason and log_probability of the completion."""
        return [
            {
                "prompt": text,
                "completion": "".join(self._completions[row]),
                "tokens": self._tokens[row],
                "finish_reason": self._finishes[row],
                "log_probability": self._scores[row],
            }
            for row, text in enumerate(self._texts)
        ]

    def to_jsonl(self) -> str:
        """The records as JSON Lines."""
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self.records())

    def _begin(self) -> None:
        if self._current == len(self._texts):
            return
        if len(self._texts) > 1:
            self._write(f"{'' if self._current == 0 else chr(10)}--- {self._current + 1} of {len(self._texts)} ---\n")
        self._write(self._texts[self._current] + "".join(self._completions[self._current]))

    def _advance(self) -> None:
        while self._current < len(self._texts) and self._finishes[self._current] is not None:
            self._write("\n")
            self._current += 1
            self._begin()

    def _write(self, text: str) -> None:
        if self._out is None or not text:
            return
        if self._out.isatty():
            text = text.translate(_PICTURES)
        encoding = self._out.encoding or "utf-8"
        self._out.write(text.encode(encoding, errors="replace").decode(encoding))
        self._out.flush()
