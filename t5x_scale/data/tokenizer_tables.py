"""The files of a tokenizer as things that can be appended to; `vocabulary_extension` keeps them in agreement."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from t5x_scale.core.errors import UserError
from t5x_scale.data.vocabulary import CONFIG_FILE, JSON_FILE, MODEL_FILE
from t5x_scale.data.vocabulary_codecs import read_config

ADDED_TOKENS_FILE = "added_tokens.json"
_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that no text is split into by what was learned.

    Attributes:
      index: its id.
      content: its name.
      special: a control token; otherwise Hugging Face's tokenizers look for its name in a text.
    """

    index: int
    content: str
    special: bool = True

    def to_json(self) -> dict[str, Any]:
        """As Hugging Face writes it, without the id: taken as it stands, neither normalised nor stripped around."""
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {"content": self.content, **flags, "special": self.special}


class SentencePieceModel:
    """A `tokenizer.model`."""

    def __init__(self, content: bytes):
        self._original = content
        try:
            self._proto = sentencepiece_model_pb2.ModelProto.FromString(content)
        except Exception as error:  # Of the protobuf package, which is not ours to import.
            raise UserError(f"{MODEL_FILE} is not a SentencePiece model") from error
        self._ids = {piece.piece: index for index, piece in enumerate(self._proto.pieces)}
        self._changed = False

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self._proto.pieces)

    def piece(self, index: int) -> str:
        """What stands at an id."""
        return self._proto.pieces[index].piece

    def token(self, index: int) -> AddedToken | None:
        """What stands at an id, if text is not split into it."""
        piece = self._proto.pieces[index]
        if piece.type in (_Piece.NORMAL, _Piece.BYTE):
            return None
        return AddedToken(index, piece.piece, piece.type != _Piece.USER_DEFINED)

    def find_control(self, name: str) -> int | None:
        """The id of a control token, or None.

        Raises:
          UserError: the name is a piece into which text is split.
        """
        index = self._ids.get(name)
        if index is not None and self._proto.pieces[index].type != _Piece.CONTROL:
            kind = _Piece.Type.Name(self._proto.pieces[index].type)
            raise UserError(f"'{name}' is piece {index} of {MODEL_FILE} already, of type {kind}, which is not CONTROL")
        return index

    def append(self, token: AddedToken) -> None:
        """Puts a token at the next id. One that is not special becomes a piece that text is not split into either."""
        if token.content in self._ids:
            raise UserError(f"'{token.content}' is id {token.index} and, in {MODEL_FILE}, {self._ids[token.content]}")
        kind = _Piece.CONTROL if token.special else _Piece.UNUSED
        self._proto.pieces.add(piece=token.content, score=0.0, type=kind)
        self._proto.trainer_spec.vocab_size = self.size
        self._ids[token.content] = self.size - 1
        self._changed = True

    def add(self, token: AddedToken) -> None:
        """Puts a control token at the next id, if it is not there."""
        if token.content not in self._ids:
            self.append(token)

    def content(self) -> bytes:
        """The file."""
        return self._proto.SerializeToString() if self._changed else self._original


class JsonTokenizer:
    """A `tokenizer.json`. Its added tokens have ids in the order in which they stand, behind what was learned."""

    def __init__(self, content: bytes):
        self._original = content
        self._value = _parse(content, JSON_FILE)
        try:
            vocab = self._value["model"]["vocab"]
            pairs = enumerate(vocab) if isinstance(vocab, list) else ((index, piece) for piece, index in vocab.items())
            self._pieces = {index: piece[0] if isinstance(piece, list) else piece for index, piece in pairs}
            entries = self._value["added_tokens"] = self._value.get("added_tokens") or []
            self.added = {entry["id"]: AddedToken(entry["id"], entry["content"], entry["special"]) for entry in entries}
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{JSON_FILE} is not a Hugging Face tokenizer: it has no vocabulary") from error
        self._pieces |= {index: token.content for index, token in self.added.items()}
        self._ids = {piece: index for index, piece in self._pieces.items()}
        self._changed = False

    @property
    def size(self) -> int:
        """The highest id and one."""
        return max(self._pieces, default=-1) + 1

    def piece(self, index: int) -> str | None:
        """What stands at an id; None in a gap."""
        return self._pieces.get(index)

    def token(self, index: int) -> AddedToken | None:
        """The token that was added at an id, or None."""
        return self.added.get(index)

    def find_control(self, name: str, trusted: bool = False) -> int | None:
        """The id of a control token, or None.

        Args:
          name: of the token.
          trusted: whether another file says that it is a control token, so that it may stand among what was learned.

        Raises:
          UserError: the name is a piece or a token into which text is split.
        """
        index = self._ids.get(name)
        if index is None or trusted or (index in self.added and self.added[index].special):
            return index
        kind = "added, but not special" if index in self.added else "a piece of text"
        raise UserError(f"'{name}' is id {index} of {JSON_FILE} already, and {kind}")

    def append(self, token: AddedToken) -> None:
        """Puts a token at the next id."""
        if token.content in self._ids:
            raise UserError(f"'{token.content}' is id {token.index} and, in {JSON_FILE}, {self._ids[token.content]}")
        self.add(token)

    def add(self, token: AddedToken) -> None:
        """Makes a name a control token, at its id in the vocabulary if it has one or else at the next."""
        if token.index in self.added:
            return
        self.added[token.index] = token
        self._pieces[token.index], self._ids[token.content] = token.content, token.index
        self._value["added_tokens"].append({"id": token.index, **token.to_json()})
        self._changed = True

    def content(self) -> bytes:
        """The file."""
        return _dump(self._value) if self._changed else self._original


class SideFiles:
    """`tokenizer_config.json` and `added_tokens.json`, where they are there and list tokens."""

    def __init__(self, files: Mapping[str, bytes]):
        self._config = _parse(files[CONFIG_FILE], CONFIG_FILE) if CONFIG_FILE in files else {}
        self._added = _parse(files[ADDED_TOKENS_FILE], ADDED_TOKENS_FILE) if ADDED_TOKENS_FILE in files else None
        self._decoder: dict[str, Any] | None = self._config.get("added_tokens_decoder")
        self._changed: set[str] = set()

    def tokens(self) -> dict[int, AddedToken]:
        """All tokens that they list, by id."""
        found = {index: AddedToken(index, name, False) for name, index in (self._added or {}).items()}
        for index, entry in (self._decoder or {}).items():
            found[int(index)] = AddedToken(int(index), entry["content"], bool(entry.get("special")))
        return found

    def add(self, token: AddedToken) -> None:
        """Lists a token in each file that lists any."""
        if self._decoder is not None and str(token.index) not in self._decoder:
            self._decoder[str(token.index)] = token.to_json()
            self._changed.add(CONFIG_FILE)
        if self._added is not None and token.content not in self._added:
            self._added[token.content] = token.index
            self._changed.add(ADDED_TOKENS_FILE)

    def content(self) -> dict[str, bytes]:
        """The files that changed."""
        values = {CONFIG_FILE: self._config, ADDED_TOKENS_FILE: self._added}
        return {name: _dump(values[name]) for name in sorted(self._changed)}


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        return read_config(content.decode(), where)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8") from error


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
