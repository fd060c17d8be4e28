"""A lossless SentencePiece model as a `tokenizer.json`, so that an exported model can be used by its directory alone.

Without one, `transformers` takes a `tokenizer.model` for Llama's: it puts a space in front, and takes U+2581 in a text
for a space. The table made here does neither. Two encodings of the same score may be chosen between otherwise than by
SentencePiece, which adds in float32: the same pieces of a long run of spaces in another order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from t5x_scale.data.tokenizer_tables import AddedToken
from t5x_scale.data.vocabulary import CONFIG_FILE, JSON_FILE, MODEL_FILE, vocabulary_from_files
from t5x_scale.data.vocabulary_codecs import SPACE

_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
_UNIGRAM = sentencepiece_model_pb2.TrainerSpec.UNIGRAM


def with_tokenizer_json(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a tokenizer with a `tokenizer.json`, and a config that says how to use it, if one can be made.

    It can be made of a `tokenizer.model` as `tools/train_vocabulary.py` makes them: unigram, nothing normalised, no
    space put in front, bytes for what has no piece. Otherwise the files come back as they are, as they do where there
    is a `tokenizer.json` already, and where `tokenizer.model` is no SentencePiece model.
    """
    if MODEL_FILE not in files or JSON_FILE in files:
        return dict(files)
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(files[MODEL_FILE])
    except Exception:  # Another kind of file of that name, as some models have.
        return dict(files)
    if not _is_lossless(proto):
        return dict(files)
    made = {JSON_FILE: _dump(_make_table(proto)), CONFIG_FILE: _dump(_make_config(files))}
    return made | dict(files)


def _is_lossless(proto: sentencepiece_model_pb2.ModelProto) -> bool:
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    changes = spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces
    known = all(piece.type != _Piece.USER_DEFINED for piece in proto.pieces)
    plain = trainer.model_type == _UNIGRAM and trainer.byte_fallback and not trainer.treat_whitespace_as_suffix
    return bool(plain and known and not changes and spec.escape_whitespaces)


def _make_table(proto: sentencepiece_model_pb2.ModelProto) -> dict[str, Any]:
    lowest = min(piece.score for piece in proto.pieces if piece.type == _Piece.NORMAL)
    # What text must not turn into stands in the table too, where ids are places: so low that nothing chooses it.
    never = 10 * min(lowest, -1.0)
    vocab = [
        [piece.piece.replace(SPACE, " "), piece.score if piece.type == _Piece.NORMAL else never]
        for piece in proto.pieces
    ]
    added = [
        {"id": index, **AddedToken(index, piece.piece).to_json()}
        for index, piece in enumerate(proto.pieces)
        if piece.type in (_Piece.CONTROL, _Piece.UNKNOWN)
    ]
    unknown = next(index for index, piece in enumerate(proto.pieces) if piece.type == _Piece.UNKNOWN)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": True},
    }


def _make_config(files: Mapping[str, bytes]) -> dict[str, Any]:
    vocabulary = vocabulary_from_files({MODEL_FILE: files[MODEL_FILE]})
    ids = {role: getattr(vocabulary, f"{role}_id") for role in ("bos", "eos", "pad", "unk")}
    names = {f"{role}_token": vocabulary.piece(index) for role, index in ids.items() if index is not None}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
