"""Vocabularies: text to ids and back, without TensorFlow, for data, generation and export alike.

`load_vocabulary` takes one string, so a gin file can name any vocabulary:

  "bytes"                      256 bytes and control tokens (layout: `vocabulary_codecs.BytesCodec`)
  "stdlib_8k"                  one that ships with the package (see `data/vocabularies/README.md`)
  "/path/to/tokenizer.model"   SentencePiece
  "/path/to/tokenizer.json"    Hugging Face (needs `pip install t5x_scale[hf]`)
  "gs://bucket/directory"      a directory that holds one of the two; `tokenizer.model` wins

Control tokens are found by name: `[eod]` (end of document), `[bos]`, the modes of UL2 `[S2S] [NLU] [NLG]`
and the sentinels `<extra_id_0>`, `<extra_id_1>`, …. Text never turns into a control token.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.core.files import Path, exists, is_directory, to_path
from t5x_scale.core.patience import read_patiently
from t5x_scale.data import vocabulary_codecs as codecs
from t5x_scale.data.vocabulary_codecs import MODES

SHIPPED = pathlib.Path(__file__).parent / "vocabularies"
MODEL_FILE, JSON_FILE, CONFIG_FILE = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
END_OF_DOCUMENT = ("[eod]", "<|endoftext|>", "<|end_of_text|>")
# Where a file declares no such token of its own.
USUAL_NAMES = {
    "pad": ("<pad>", "[PAD]"),
    "bos": ("[bos]", "<s>", "<bos>", "<|begin_of_text|>"),
    "eos": ("</s>", "<eos>", *END_OF_DOCUMENT),
    "unk": ("<unk>", "[UNK]"),
}


class Vocabulary:
    """Text to ids and back.

    Every id is in `[0, size)`. For bytes and for models trained by `tools/train_vocabulary.py`, id 0 is
    padding, no text encodes to it, and `decode(encode(text)) == text` for every Unicode text: white space
    of all kinds, NUL and U+2581 included. The one exception are lone surrogates, which are not text: they
    become "?". Foreign models keep their own habits; `zero_is_text` tells whether theirs spend id 0 on a
    piece of text.

    Attributes:
      spec: what `load_vocabulary` was given, paths made absolute.
      size: number of ids, control tokens included.
      fingerprint: hexadecimal SHA-256 of the file (for SentencePiece exactly that).
      pad_id, bos_id, eos_id, unk_id: ids, or None where the vocabulary has no such token.
      eod_id: the token that ends a document; `eos_id` where there is no token of that name.
    """

    def __init__(self, codec, spec: str, fingerprint: str):
        self._codec = codec
        self.spec = spec
        self.fingerprint = fingerprint
        self.size: int = codec.size
        self.pad_id = self._find_role("pad")
        self.bos_id = self._find_role("bos")
        self.eos_id = self._find_role("eos")
        self.unk_id = self._find_role("unk")
        eod_id = self._first_control(END_OF_DOCUMENT)
        self.eod_id: int | None = self.eos_id if eod_id is None else eod_id

    def _find_role(self, role: str) -> int | None:
        declared = self._codec.roles[role]
        return self._first_control(USUAL_NAMES[role]) if declared is None else declared

    def _first_control(self, names: Iterable[str]) -> int | None:
        found = (self._codec.control_id(name) for name in names)
        return next((i for i in found if i is not None), None)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; no control token is added at either end."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once, on all cores where the library can."""
        return self._codec.encode_batch([_to_valid_unicode(text) for text in texts])

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode_batch`, int32 [length] for each text: faster, and without an object for every id."""
        return self._codec.encode_arrays([_to_valid_unicode(text) for text in texts])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control tokens leave nothing behind, broken UTF-8 becomes U+FFFD.

        Raises:
          UserError: an id outside `[0, size)`.
        """
        values = [self._check_id(i) for i in ids]
        return self._codec.decode(values)

    def piece(self, index: int) -> str:
        """The printable name of one id, control tokens included."""
        return self._codec.piece(self._check_id(index))

    def _check_id(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise UserError(f"id {index} is outside vocabulary '{self.spec}' of {self.size} ids")
        return int(index)

    def control_id(self, name: str) -> int | None:
        """The id of a control token by its name, such as `"[MASK]"`, or None if there is no such token."""
        return self._codec.control_id(name)

    def spelling(self, index: int) -> bytes | None:
        """The bytes of text that an id stands for, a space as a space; None for control tokens and ids without text.

        The spellings of the ids of a text, one after another, are the text, where the vocabulary adds and normalises
        nothing.
        """
        return self._codec.spelling(self._check_id(index))

    def is_byte(self, index: int) -> bool:
        """Whether an id stands for one byte of a character that has no piece."""
        return self._codec.is_byte(self._check_id(index))

    @property
    def separator_id(self) -> int:
        """`eod_id`, where there must be one: it closes every document of the stream.

        Raises:
          UserError: the vocabulary has no such token.
        """
        if self.eod_id is None:
            raise UserError(
                f"the vocabulary '{self.spec}' has no token that ends a document ([eod] or end of sequence)"
            )
        return self.eod_id

    def mode_token_id(self, mode: str) -> int:
        """The id of a mode of UL2, `"[S2S]"`, `"[NLU]"` or `"[NLG]"`."""
        if mode not in MODES:
            raise UserError(f"unknown mode '{mode}'{did_you_mean(mode, MODES)}; modes are {' '.join(MODES)}")
        index = self._codec.control_id(mode)
        if index is None:
            raise UserError(f"vocabulary '{self.spec}' has no mode token {mode}")
        return index

    @functools.cached_property
    def num_sentinels(self) -> int:
        """How many sentinels there are: the length of `<extra_id_0>`, `<extra_id_1>`, … without a gap."""
        count = 0
        while self._codec.control_id(f"<extra_id_{count}>") is not None:
            count += 1
        return count

    def sentinel_id(self, index: int) -> int:
        """The id of sentinel `index`, counted from 0.

        Raises:
          UserError: there is no such sentinel. Nothing wraps around.
        """
        if not 0 <= index < self.num_sentinels:
            raise UserError(
                f"sentinel {index} asked of vocabulary '{self.spec}', which has {self.num_sentinels}: "
                "use fewer spans, or a vocabulary with more"
            )
        return self._codec.control_id(f"<extra_id_{index}>")

    @property
    def zero_is_text(self) -> bool:
        """Whether id 0 is a piece of text, which code that takes 0 for padding must not see."""
        declared = (self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.eod_id)
        return 0 not in declared and self._codec.control_id(self.piece(0)) is None

    def __eq__(self, other) -> bool:
        return isinstance(other, Vocabulary) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Vocabulary('{self.spec}', size={self.size}, fingerprint={self.fingerprint[:12]})"

    def __reduce__(self):
        return load_vocabulary, (self.spec,)


def _to_valid_unicode(text: str) -> str:
    if text.isascii():
        return text
    return text.encode(errors="replace").decode()


def shipped_names() -> list[str]:
    """The names of the vocabularies in the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{MODEL_FILE}"))


def load_vocabulary(spec: str) -> Vocabulary:
    """Loads a vocabulary by name or path; see the module's docstring for what `spec` may be.

    Raises:
      UserError: an unknown name, a missing or malformed file, or a missing package.
    """
    if spec == "bytes":
        codec = codecs.BytesCodec()
        return Vocabulary(codec, spec, _fingerprint(codec.content()))
    if spec in shipped_names():
        return _load_sentencepiece(to_path(SHIPPED / spec / MODEL_FILE), spec)
    return read_patiently(lambda: _load(spec), f"the vocabulary {spec}")


def _load(spec: str) -> Vocabulary:
    file = _find_file(spec)
    if file.suffix == ".json":
        return _load_hugging_face(file)
    return _load_sentencepiece(file, str(file))


def vocabulary_from_files(files: Mapping[str, bytes], spec: str = "the model's tokenizer") -> Vocabulary:
    """The vocabulary of a model that carries its tokenizer's files; `spec` is what messages call it.

    As in a directory, `tokenizer.model` wins. Made of bytes, it cannot be pickled.

    Raises:
      UserError: there is no tokenizer among the files, or it is malformed.
    """
    if MODEL_FILE in files:
        return _from_sentencepiece(files[MODEL_FILE], spec, spec)
    if JSON_FILE in files:
        return _from_hugging_face(files[JSON_FILE], files.get(CONFIG_FILE, b"{}"), spec, f"{CONFIG_FILE} of {spec}")
    raise UserError(f"{spec} has neither {MODEL_FILE} nor {JSON_FILE}")


def has_tokenizer(files: Mapping[str, bytes]) -> bool:
    """Whether a vocabulary can be made of the files; what says how to sample may stand there alone."""
    return MODEL_FILE in files or JSON_FILE in files


def _load_sentencepiece(file: Path, spec: str) -> Vocabulary:
    return _from_sentencepiece(file.read_bytes(), spec, str(file))


def _load_hugging_face(file: Path) -> Vocabulary:
    # tokenizer.json does not say which token begins or ends a text; the file beside it does.
    beside = file.parent / CONFIG_FILE
    has_config = file.name == JSON_FILE and exists(beside)
    config = beside.read_bytes() if has_config else b"{}"
    return _from_hugging_face(file.read_bytes(), config, str(file), str(beside))


def _from_sentencepiece(model: bytes, spec: str, where: str) -> Vocabulary:
    return Vocabulary(codecs.SentencePieceCodec(model, where), spec, _fingerprint(model))


def _from_hugging_face(content: bytes, config: bytes, spec: str, beside: str) -> Vocabulary:
    try:
        text, config_text = content.decode(), config.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{spec} is not a Hugging Face tokenizer: not UTF-8") from error
    codec = codecs.HuggingFaceCodec(text, codecs.read_config(config_text, beside), spec)
    return Vocabulary(codec, spec, _fingerprint(content + config))


def _fingerprint(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _find_file(spec: str) -> Path:
    path = to_path(spec)
    if is_directory(path):
        for name in (MODEL_FILE, JSON_FILE):
            if exists(path / name):
                return path / name
        raise UserError(f"{path} holds neither {MODEL_FILE} nor {JSON_FILE}")
    if not exists(path):
        raise UserError(_describe_missing(spec, path))
    if path.suffix not in (".model", ".json"):
        raise UserError(f"{path} is no vocabulary: expected a .model or .json file, or a directory holding one")
    return path


def _describe_missing(spec: str, path: Path) -> str:
    names = ["bytes", *shipped_names()]
    if "/" not in spec and not spec.endswith((".model", ".json")):
        return (
            f"unknown vocabulary '{spec}'{did_you_mean(spec, names)}; known names are {', '.join(names)}, "
            f"and {path} does not exist either"
        )
    beside = [entry.name for entry in path.parent.iterdir()] if is_directory(path.parent) else []
    return f"no such vocabulary file: {path}{did_you_mean(path.name, beside)}"


# The files that make a tokenizer, as Hugging Face names them, and the one that says how to sample and when to stop.
TOKENIZER_FILES = (MODEL_FILE, JSON_FILE, CONFIG_FILE, "special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES += ("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json")


def tokenizer_files(spec: str) -> dict[str, bytes]:
    """The files of a vocabulary by name, as they would stand in a directory of their own; none for "bytes".

    Raises:
      UserError: as `load_vocabulary`.
    """
    if spec == "bytes":
        return {}
    if spec in shipped_names():
        return {MODEL_FILE: (SHIPPED / spec / MODEL_FILE).read_bytes()}
    return read_patiently(lambda: _read_tokenizer(spec), f"the vocabulary {spec}")


def _read_tokenizer(spec: str) -> dict[str, bytes]:
    path = to_path(spec)
    if not is_directory(path):
        file = _find_file(spec)
        return {JSON_FILE if file.suffix == ".json" else MODEL_FILE: file.read_bytes()}
    return {name: (path / name).read_bytes() for name in TOKENIZER_FILES if exists(path / name)}
