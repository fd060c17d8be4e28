"""The three ways text becomes ids: SentencePiece models, Hugging Face tokenizers, and plain bytes.

A codec knows ids and pieces and nothing else; what a control token is *for* is said in `vocabulary`. Each has

  size                                  number of ids
  encode_batch(texts) -> list[list]     ids of the text alone: no control token is added, and text that
                                        looks like a control token ("[eod]") is text
  encode_arrays(texts) -> list[int32]   the same as arrays, without an object for every id where that can be
  decode(ids) -> str                    control tokens leave nothing behind
  piece(id) -> str                      the printable name of an id
  control_id(name) -> int | None        the id of a control token by its name
  spelling(id) -> bytes | None          the bytes of text an id stands for; None where it stands for none
  is_byte(id) -> bool                   whether it stands for a byte that has no other piece, not for a character
  roles -> dict                         ids the file itself declares for "pad", "bos", "eos" and "unk"
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import sentencepiece

from t5x_scale.core.errors import UserError

MODES = ("[S2S]", "[NLU]", "[NLG]")
ROLES = ("pad", "bos", "eos", "unk")
SPACE = "\u2581"  # How SentencePiece writes a space.
_threads = -1  # As SentencePiece counts: -1 is one for each core.


def use_one_thread() -> None:
    """Has this process tokenise in one thread, for pools that have a process for each core already."""
    global _threads
    _threads = 1
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


class BytesCodec:
    """Every byte is an id; nothing is learned and nothing is unknown.

    Layout: 0 `<pad>`, 1 `[eod]`, 2 `[bos]`, 3 to 5 the modes `[S2S] [NLU] [NLG]`, 6 and 7 reserved, byte b
    at 8 + b, then 376 sentinels `<extra_id_0>` … at 264 to 639: enough to denoise half of 2048 tokens in spans of 3.
    The size, 640, is a multiple of 128.
    """

    FIRST_BYTE = 8
    FIRST_SENTINEL = FIRST_BYTE + 256
    NUM_SENTINELS = 376

    def __init__(self):
        self.size = self.FIRST_SENTINEL + self.NUM_SENTINELS
        self._names = ["<pad>", "[eod]", "[bos]", *MODES, "<reserved_0>", "<reserved_1>"]
        self._names += [f"<0x{byte:02X}>" for byte in range(256)]
        self._names += [f"<extra_id_{i}>" for i in range(self.NUM_SENTINELS)]
        self._controls = {name: i for i, name in enumerate(self._names) if not 0 <= i - self.FIRST_BYTE < 256}
        self.roles = {"pad": 0, "bos": 2, "eos": 1, "unk": None}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + self.FIRST_BYTE for byte in text.encode()] for text in texts]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self.FIRST_BYTE for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        values = (i - self.FIRST_BYTE for i in ids)
        return bytes(value for value in values if 0 <= value < 256).decode(errors="replace")

    def piece(self, index: int) -> str:
        return self._names[index]

    def control_id(self, name: str) -> int | None:
        return self._controls.get(name)

    def spelling(self, index: int) -> bytes | None:
        return bytes([index - self.FIRST_BYTE]) if self.is_byte(index) else None

    def is_byte(self, index: int) -> bool:
        return 0 <= index - self.FIRST_BYTE < 256

    def content(self) -> bytes:
        """What the fingerprint is taken of: the layout."""
        return "\n".join(self._names).encode()


class SentencePieceCodec:
    """A SentencePiece `tokenizer.model`.

    SentencePiece writes a space as U+2581 and so turns a U+2581 of the text into a space. Where the model
    is otherwise lossless (byte fallback, no added prefix) that character is spelled by its three bytes.
    """

    def __init__(self, model: bytes, where: str):
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"{where} is not a SentencePiece model") from error
        self.size = self._processor.vocab_size()
        if self.size == 0:
            raise UserError(f"{where} is not a SentencePiece model: it holds no pieces")
        found = {role: getattr(self._processor, f"{role}_id")() for role in ROLES}
        self.roles = {role: (i if i >= 0 else None) for role, i in found.items()}
        self._space_bytes = self._find_space_bytes()
        # From sentencepiece 0.2.2 on.
        self._gives_arrays = hasattr(self._processor, "EncodeAsNumpy")

    def _find_space_bytes(self) -> list[int] | None:
        processor = self._processor
        ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        adds_prefix = processor.encode("a", out_type=str)[:1] != ["a"]
        return None if adds_prefix or not all(map(processor.is_byte, ids)) else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._processor.encode(list(texts), num_threads=_threads)
        for row in self._find_spaces(texts):
            encoded[row] = self._encode_around_space(texts[row])
        return encoded

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        if not self._gives_arrays:
            return _to_arrays(self.encode_batch(texts))
        encoded = self._processor.EncodeAsNumpy(list(texts), num_threads=_threads)
        for row in self._find_spaces(texts):
            encoded[row] = np.array(self._encode_around_space(texts[row]), np.int32)
        return encoded

    def _find_spaces(self, texts: Sequence[str]) -> list[int]:
        """The texts that hold the character which SentencePiece would take for a space."""
        return [] if self._space_bytes is None else [row for row, text in enumerate(texts) if SPACE in text]

    def _encode_around_space(self, text: str) -> list[int]:
        ids, *others = self._processor.encode(text.split(SPACE), num_threads=_threads)
        for other in others:
            ids += self._space_bytes
            ids += other
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode(list(ids))

    def piece(self, index: int) -> str:
        return self._processor.id_to_piece(index)

    def control_id(self, name: str) -> int | None:
        index = self._processor.piece_to_id(name)  # The id of <unk> for a name it does not know.
        # A piece of that name which is not a control token could come from text.
        return index if self._processor.is_control(index) and self.piece(index) == name else None

    def spelling(self, index: int) -> bytes | None:
        processor = self._processor
        if processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index):
            return None
        piece = self.piece(index)
        return _byte_of(piece) if processor.is_byte(index) else piece.replace(SPACE, " ").encode()

    def is_byte(self, index: int) -> bool:
        return self._processor.is_byte(index)


class HuggingFaceCodec:
    """A Hugging Face `tokenizer.json`; `config` is the `tokenizer_config.json` beside it, or empty."""

    def __init__(self, text: str, config: dict[str, Any], where: str):
        try:
            import tokenizers
        except ImportError as error:
            raise UserError(f"{where} needs the package 'tokenizers': pip install t5x_scale[hf]") from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # The bindings raise bare Exception.
            raise UserError(f"{where} is not a Hugging Face tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if not ids:
            raise UserError(f"{where} is not a Hugging Face tokenizer: it holds no pieces")
        self.size = max(ids.values()) + 1
        self._controls = {
            token.content: i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self.roles = {role: self._role(config.get(f"{role}_token"), ids) for role in ROLES}
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {i: None if token.special else token.content.encode() for i, token in added.items()}
        decoder = _decoder_types(json.loads(text).get("decoder"))
        self._is_byte_level, self._falls_back = "ByteLevel" in decoder, "ByteFallback" in decoder

    @staticmethod
    def _role(token: str | dict | None, ids: dict[str, int]) -> int | None:
        name = token.get("content") if isinstance(token, dict) else token
        return ids.get(name)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [row.ids for row in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        return _to_arrays(self.encode_batch(texts))

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def piece(self, index: int) -> str:
        return self._tokenizer.id_to_token(index) or f"<unused_{index}>"

    def control_id(self, name: str) -> int | None:
        return self._controls.get(name)

    def spelling(self, index: int) -> bytes | None:
        piece = self._tokenizer.id_to_token(index)
        if piece is None or index in self._added:
            return self._added.get(index)
        if self._is_byte_level:
            known = all(character in _BYTE_LEVEL for character in piece)
            return bytes(_BYTE_LEVEL[character] for character in piece) if known else None
        return _byte_of(piece) if self.is_byte(index) else piece.replace(SPACE, " ").encode()

    def is_byte(self, index: int) -> bool:
        piece = self._tokenizer.id_to_token(index)
        return self._falls_back and index not in self._added and bool(_BYTE_PIECE.fullmatch(piece or ""))


def _decoder_types(decoder: dict[str, Any] | None) -> set[str]:
    if not decoder:
        return set()
    parts = [_decoder_types(part) for part in decoder.get("decoders", ())]
    return {decoder["type"]}.union(*parts)


_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def _byte_of(piece: str) -> bytes:
    return bytes.fromhex(piece[3:5])


def _byte_level_alphabet() -> dict[str, int]:
    """The characters of GPT-2's byte-level BPE: bytes that print stand for themselves, the rest from 256 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()


def _to_arrays(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, np.int32) for row in rows]


def read_config(text: str, where: str) -> dict[str, Any]:
    """Parses a `tokenizer_config.json`."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{where} is not a tokenizer configuration: expected a JSON object")
    return config
