"""A lossless SentencePiece model as a tokenizer.json: the same ids for the same text."""

import json
import pathlib
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.data.tokenizer_conversion import with_tokenizer_json
from t5x_scale.data.vocabulary import SHIPPED, load_vocabulary, vocabulary_from_files
from t5x_scale.data.vocabulary_extension import extend_tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

import small_tokenizers

SHIPPED_FILES = {"tokenizer.model": (SHIPPED / "stdlib_8k" / "tokenizer.model").read_bytes()}


def alone(files):
    return vocabulary_from_files({name: content for name, content in files.items() if name != "tokenizer.model"})


@pytest.fixture(scope="module")
def pair():
    return load_vocabulary("stdlib_8k"), alone(with_tokenizer_json(SHIPPED_FILES))


def test_ids_roles_and_pieces_are_the_same(pair):
    model, table = pair
    assert table.size == model.size
    for name in ("pad_id", "bos_id", "eos_id", "unk_id", "eod_id", "num_sentinels"):
        assert getattr(table, name) == getattr(model, name)
    for index in range(model.size):
        assert table.spelling(index) == model.spelling(index)
        assert table.is_byte(index) == model.is_byte(index)


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.one_of(st.sampled_from(" \t\n\0\u2581[]<>0xA4"), st.characters(codec="utf-8"))))
def test_any_text_is_lossless_and_cut_alike(pair, text):
    model, table = pair
    ids = table.encode(text)
    assert table.decode(ids) == text
    # Equal scores: the same pieces, perhaps in another order.
    assert sorted(ids) == sorted(model.encode(text))


def test_real_text_is_cut_alike(pair):
    model, table = pair
    text = pathlib.Path(__file__).read_text() + (small_tokenizers.ROOT / "README.md").read_text()
    lines = text.splitlines(keepends=True)
    same = [left == right for left, right in zip(model.encode_batch(lines), table.encode_batch(lines), strict=True)]
    assert sum(same) >= 0.99 * len(same)


def test_it_is_extended_together_with_its_model():
    files = with_tokenizer_json(SHIPPED_FILES)
    size = load_vocabulary("stdlib_8k").size
    extended, ids = extend_tokenizer(files, ["[NEW]", "[NLG]"])
    assert ids["[NEW]"] == size
    assert alone(extended).control_id("[NEW]") == vocabulary_from_files(extended).control_id("[NEW]") == size


@pytest.mark.parametrize("llama", [True, False])
def test_what_is_not_lossless_or_not_unigram_is_left_as_it_is(llama):
    files = {"tokenizer.model": small_tokenizers.sentencepiece_model("bpe", llama=llama)}
    assert with_tokenizer_json(files) == files


@pytest.mark.parametrize("content", [b"\xff\xff", b"IQ== 0\nIg== 1\n", b""])
def test_a_model_of_another_kind_is_left_as_it_is(content):
    assert with_tokenizer_json({"tokenizer.model": content}) == {"tokenizer.model": content}


def test_what_is_there_is_kept():
    files = small_tokenizers.llama_files()
    assert with_tokenizer_json(files) == files
    config = json.dumps({"eos_token": "[eod]"}).encode()
    assert with_tokenizer_json(SHIPPED_FILES | {"tokenizer_config.json": config})["tokenizer_config.json"] == config
