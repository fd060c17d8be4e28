"""A small real tokenizer, in memory."""

import functools
import io

import sentencepiece


@functools.cache
def _model() -> bytes:
    text = ["the quick brown fox jumps over the lazy dog", "she sells sea shells by the sea shore"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    return model.getvalue()


def tokenizer() -> dict[str, bytes]:
    """The files of a SentencePiece tokenizer of about 60 pieces without modes and sentinels."""
    return {"tokenizer.model": _model()}
