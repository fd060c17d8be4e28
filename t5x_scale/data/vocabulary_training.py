"""Trains SentencePiece vocabularies by PaLM's rules.

Source: PaLM, section 2.2: built from the training data, lossless (white space is kept), characters out of
the vocabulary fall back to UTF-8 bytes, digits are always split one by one. The control tokens UL2R needs
later are reserved from the start, so that a model never has to grow for them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from t5x_scale.core.errors import UserError
from t5x_scale.data.vocabulary_codecs import MODES

NUM_SENTINELS = 256
CONTROL_TOKENS = [*MODES, *(f"<extra_id_{i}>" for i in range(NUM_SENTINELS))]
# <pad> 0, [eod] 1, [bos] 2, <unk> 3, then the control tokens, then the bytes, then what is learned.
NUM_RESERVED = 4 + len(CONTROL_TOKENS) + 256

# The trainer drops every sentence that holds one of the characters it uses as marks.
_RESERVED_CHARACTERS = re.compile("[\0\t\u2581\u2585]+")
_CHUNK_CHARACTERS = 2000
# The result depends on how many threads add up the counts.
_NUM_THREADS = 2


def train_vocabulary(texts: Iterable[str], size: int, max_characters: int = 20_000_000) -> bytes:
    """Trains a unigram model and returns the content of its `tokenizer.model`.

    The same texts give the same bytes. About a minute for ten million characters.

    Args:
      texts: documents, in a fixed order.
      size: number of ids, reserved ones included (`NUM_RESERVED`, 391).
      max_characters: reading stops after so many characters of text.

    Raises:
      UserError: no text, or too little of it for `size`.
    """
    if size <= NUM_RESERVED:
        raise UserError(f"a vocabulary of {size} is too small: {NUM_RESERVED} ids are reserved")
    chunks = _Counted(chunk for text in _take(texts, max_characters) for chunk in split_into_chunks(text))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chunks,
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.9999,
            max_sentence_length=4 * _CHUNK_CHARACTERS,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            eos_piece="[eod]",
            bos_piece="[bos]",
            unk_piece="<unk>",
            control_symbols=CONTROL_TOKENS,
            num_threads=_NUM_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        if chunks.count == 0:
            raise UserError("there is no text to train a vocabulary on") from error
        reason = str(error).rpartition("] ")[2]  # Behind the place in SentencePiece's own source.
        raise UserError(f"cannot train a vocabulary of {size}: {reason}") from error
    return model.getvalue()


def split_into_chunks(text: str) -> Iterator[str]:
    """Cuts a document into what the trainer takes as sentences: whole lines, about 2000 characters of them.

    Line ends stay inside, so that pieces such as `"):\\n"` can be learned.
    """
    for part in _RESERVED_CHARACTERS.split(text):
        chunk = ""
        for line in part.splitlines(keepends=True):
            for start in range(0, len(line), _CHUNK_CHARACTERS):
                if chunk and len(chunk) + len(line) - start > _CHUNK_CHARACTERS:
                    yield chunk
                    chunk = ""
                chunk += line[start : start + _CHUNK_CHARACTERS]
        if chunk:
            yield chunk


def _take(texts: Iterable[str], max_characters: int) -> Iterator[str]:
    left = max_characters
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


class _Counted:
    """Counts what passes: the trainer reports an empty input only as an internal error."""

    def __init__(self, values: Iterator[str]):
        self._values = values
        self.count = 0

    def __iter__(self):
        return self

    def __next__(self) -> str:
        value = next(self._values)
        self.count += 1
        return value
