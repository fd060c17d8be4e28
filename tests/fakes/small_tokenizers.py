"""Tokenizers of a few hundred pieces in the styles that are about, trained in a moment on the text of the licence."""

from __future__ import annotations

import functools
import io
import json
import pathlib

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).parents[2]
SAMPLES = [
    "The quick brown fox",
    " leading and  double spaces",
    "caf\u00e9 \U0001f600 \u4e2d\u6587",
    "def f(x):\n    return x\t+ 1\n",
    "trailing ",
    "[S2S] <extra_id_0> </s> [eod]",
    "",
]


def _texts() -> list[str]:
    text = (ROOT / "LICENSE").read_text()
    return [line for line in text.splitlines() if line.strip()]


@functools.cache
def sentencepiece_model(kind: str = "bpe", size: int = 500, *, llama: bool = True) -> bytes:
    """A `tokenizer.model`; as Llama 2's (ids 0-2 `<unk> <s> </s>`, a space put in front), or lossless as ours."""
    model = io.BytesIO()
    ids = (
        {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
        if llama
        else {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_texts()),
        model_writer=model,
        model_type=kind,
        vocab_size=size,
        normalization_rule_name="identity",
        add_dummy_prefix=llama,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        split_digits=True,
        minloglevel=2,
        num_threads=1,
        **ids,
    )
    return model.getvalue()


@functools.cache
def llama_json(size: int = 500) -> bytes:
    """The `tokenizer.json` that belongs to `sentencepiece_model("bpe", size)`, as transformers converts Llama 2's."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model("bpe", size))
    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    merges = []
    for piece in proto.pieces:
        splits = [(piece.piece[:i], piece.piece[i:]) for i in range(1, len(piece.piece))]
        known = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        merges += [(-piece.score, vocab[left], vocab[right], left, right) for left, right in known]
    merges = [(left, right) for *_, left, right in sorted(merges)]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in ("<unk>", "<s>", "</s>")]
    )
    return tokenizer.to_str(pretty=True).encode()


@functools.cache
def byte_level_json(size: int = 400) -> bytes:
    """A byte-level BPE `tokenizer.json`, as GPT-NeoX's: `<|endoftext|>` is 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer.to_str(pretty=True).encode()


def special(content: str) -> dict:
    """An entry of `added_tokens_decoder`."""
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": content, **flags, "special": True}


def llama_files() -> dict[str, bytes]:
    """The files of a tokenizer as a directory of Llama 2 has them."""
    names = ("<unk>", "<s>", "</s>")
    config = {
        "added_tokens_decoder": {str(i): special(name) for i, name in enumerate(names)},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
    }
    return {
        "tokenizer.model": sentencepiece_model(),
        "tokenizer.json": llama_json(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
    }


def byte_level_files() -> dict[str, bytes]:
    """The files of a tokenizer as a directory of Pythia has them."""
    config = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    return {"tokenizer.json": byte_level_json(), "tokenizer_config.json": json.dumps(config).encode()}


def encode_json(content: bytes, text: str) -> list[int]:
    """Ids of a text by a `tokenizer.json`, with text that looks like a special token left as text."""
    tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).ids
