"""Vocabularies between SeqIO and this project."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.seqio_source.libraries import first_line, seqio, tf
from t5x_scale.data.seqio_source.registry import is_text
from t5x_scale.data.vocabulary import Vocabulary


def to_text(value: bytes | str) -> str:
    """Bytes that are not UTF-8 become U+FFFD: one bad byte must not end a run of a thousand files."""
    return value if isinstance(value, str) else value.decode(errors="replace")


# Letters, digits, white space and what is not ASCII.
_SENTENCE = "The 3 quick brown foxes\n\tjumped over 42 lazy dogs: \u00e9\u4e2d."


def check_vocabulary(task: seqio.Task, feature: str, vocabulary: Vocabulary) -> None:
    """Refuses a task whose ids come from another vocabulary than the run's.

    A vocabulary that is no file is compared by what it makes of a sentence. Says nothing where that cannot be done, as
    for ids that were made elsewhere: then only their range is checked.
    """
    found = describe_feature_vocabulary(task, feature)
    if found is None:
        return
    other = found["fingerprint"] not in (None, vocabulary.fingerprint)
    if other or (found["fingerprint"] is None and _differs(task.output_features[feature].vocabulary, vocabulary)):
        raise UserError(
            f"task '{task.name}' tokenises feature '{feature}' with {found['name']}, "
            f"which is not the run's vocabulary '{vocabulary.spec}'"
        )


def _differs(theirs: seqio.Vocabulary, ours: Vocabulary) -> bool:
    """Whether two vocabularies encode a sentence differently, as far as that can be told."""
    if isinstance(theirs, seqio.PassThroughVocabulary):
        return False
    try:
        ids = list(theirs.encode(_SENTENCE))
    except Exception:  # Whatever a vocabulary of someone's own may raise; then it cannot be told.
        return False
    return ids != ours.encode(_SENTENCE)


def describe_feature_vocabulary(task: seqio.Task, feature: str) -> dict[str, Any] | None:
    """Name, size and fingerprint (or None) of the vocabulary a task tokenises with; None for a text feature."""
    if is_text(task, feature):
        return None
    vocabulary = task.output_features[feature].vocabulary
    fingerprint = None
    if isinstance(vocabulary, SeqioVocabulary):
        fingerprint = vocabulary.wrapped.fingerprint
    elif isinstance(vocabulary, seqio.SentencePieceVocabulary):
        # Of the file, as in Vocabulary: sentinels that SeqIO appends leave the other ids as they are.
        fingerprint = hashlib.sha256(_read_file(vocabulary.sentencepiece_model_file)).hexdigest()
    return {"name": str(vocabulary), "size": vocabulary.vocab_size, "fingerprint": fingerprint}


def _read_file(path: str) -> bytes:
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except tf.errors.OpError as error:
        raise UserError(f"cannot read the vocabulary {path}: {first_line(error)}") from error


class SeqioVocabulary(seqio.Vocabulary):
    """One of our vocabularies as SeqIO sees it, for tasks that tokenise in their preprocessors.

    Raises:
      UserError: id 0 of `vocabulary` is a piece of text; SeqIO takes 0 for padding everywhere.
    """

    def __init__(self, vocabulary: Vocabulary):
        if vocabulary.zero_is_text:
            raise UserError(
                f"vocabulary '{vocabulary.spec}' spends id 0 on the text {vocabulary.piece(0)!r}, "
                "which SeqIO takes for padding"
            )
        super().__init__(extra_ids=0)
        self.wrapped = vocabulary

    @property
    def bos_id(self) -> int | None:
        return self.wrapped.bos_id

    @property
    def eos_id(self) -> int | None:
        return self.wrapped.eos_id

    @property
    def unk_id(self) -> int | None:
        return self.wrapped.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.wrapped.size

    def _encode(self, s: str) -> list[int]:
        return self.wrapped.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.wrapped.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: bytes | np.ndarray) -> np.ndarray:
            # TensorFlow hands over bytes inside a graph and an array of rank 0 outside.
            return np.asarray(self.wrapped.encode(to_text(np.asarray(text).item())), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(values: np.ndarray) -> np.ndarray:
            rows = values.reshape(-1, values.shape[-1])
            texts = [self.wrapped.decode(row).encode() for row in rows]
            return np.array(texts, object).reshape(values.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        texts.set_shape(ids.shape[:-1])
        return texts

    def __eq__(self, other) -> bool:
        return isinstance(other, SeqioVocabulary) and self.wrapped == other.wrapped

    def __str__(self) -> str:
        return f"SeqioVocabulary({self.wrapped.spec})"
