"""From one vocabulary to another: pieces that mean the same, and pieces made of others."""

import itertools
import pathlib
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.data.vocabulary import load_vocabulary, vocabulary_from_files
from t5x_scale.data.vocabulary_extension import extend_tokenizer
from t5x_scale.data.vocabulary_remapping import remap_pieces, subword_ids

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

import small_tokenizers

KINDS = ("llama", "llama json", "lossless", "byte level", "bytes")
PAIRS = list(itertools.permutations(KINDS, 2))


def load(kind):
    if kind == "bytes":
        return load_vocabulary("bytes")
    files = {
        "llama": {"tokenizer.model": small_tokenizers.sentencepiece_model()},
        "llama json": {"tokenizer.json": small_tokenizers.llama_json()},
        "lossless": {"tokenizer.model": small_tokenizers.sentencepiece_model("unigram", llama=False)},
        "byte level": small_tokenizers.byte_level_files(),
    }
    return vocabulary_from_files(files[kind], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_is_mapped_to_itself(kind):
    vocabulary = load(kind)
    np.testing.assert_array_equal(remap_pieces(vocabulary, vocabulary), np.arange(vocabulary.size))


def test_two_files_of_one_tokenizer_are_one():
    model, table = load("llama"), load("llama json")
    np.testing.assert_array_equal(remap_pieces(model, table), np.arange(500))
    np.testing.assert_array_equal(remap_pieces(table, model), np.arange(500))


def test_what_was_added_has_no_old_id():
    files = small_tokenizers.llama_files()
    extended, _ = extend_tokenizer(files, ["[S2S]", "<extra_id_0>"])
    old, new = vocabulary_from_files(files), vocabulary_from_files(extended)
    np.testing.assert_array_equal(remap_pieces(old, new), [*range(500), -1, -1])
    np.testing.assert_array_equal(remap_pieces(new, old), np.arange(500))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_what_is_mapped_means_the_same_and_nothing_is_missed(first, second):
    old, new = load(first), load(second)
    mapping = remap_pieces(old, new)
    assert (mapping.dtype, mapping.shape) == (np.int64, (new.size,))
    known = {old.spelling(index) for index in range(old.size)}
    for index, other in enumerate(mapping.tolist()):
        spelling = new.spelling(index)
        if spelling is None:
            assert other == -1 or old.spelling(other) is None
        else:
            assert (other >= 0) == (spelling in known)
            assert other < 0 or old.spelling(other) == spelling
    assert mapping[new.eos_id] == old.eos_id


def test_spaces_bytes_and_roles_between_kinds():
    llama, byte_level, lossless = load("llama"), load("byte level"), load("lossless")
    index = {llama.piece(i): i for i in range(llama.size)}
    neox = {byte_level.piece(i): i for i in range(byte_level.size)}
    to_neox, to_llama = remap_pieces(llama, byte_level), remap_pieces(byte_level, llama)
    assert to_neox[neox["\u0120the"]] == index["\u2581the"]
    assert to_llama[index["\u2581the"]] == neox["\u0120the"]
    assert to_neox[neox["\u010a"]] == index["<0x0A>"]
    assert to_neox[neox["\u00e4"]] == index["<0xE4>"]
    # "a" has a piece of its own and a byte that no text uses; the table of bytes has it once.
    assert to_neox[neox["a"]] == index["a"]
    assert to_llama[index["<0x61>"]] == neox["a"]
    assert to_neox[byte_level.eos_id] == llama.eos_id
    assert remap_pieces(llama, lossless)[[lossless.bos_id, lossless.eos_id, lossless.unk_id]].tolist() == [1, 2, 0]


class TestSubwords:
    @pytest.mark.parametrize(("first", "second"), PAIRS)
    def test_every_piece_is_spelled_by_the_pieces_of_another(self, first, second):
        old, new = load(first), load(second)
        for index in range(new.size):
            spelling = new.spelling(index)
            if spelling is not None:
                ids = subword_ids(old, spelling)
                assert b"".join(old.spelling(i) for i in ids) == spelling

    @settings(max_examples=100, deadline=None)
    @given(text=st.text(alphabet=st.one_of(st.sampled_from(" \n\tthe"), st.characters(codec="utf-8")), max_size=8))
    @pytest.mark.parametrize("kind", KINDS)
    def test_any_text_is_spelled(self, kind, text):
        if "\u2581" in text:
            return  # SentencePiece has no other way to write it than as a space.
        old = load(kind)
        assert b"".join(old.spelling(i) for i in subword_ids(old, text)).decode() == text

    def test_the_space_in_front_is_the_pieces_own(self):
        llama = load("llama")
        assert [llama.piece(i) for i in subword_ids(llama, " the")] == ["\u2581the"]
        assert [llama.piece(i) for i in subword_ids(llama, "the")] == ["th", "e"]
        assert [llama.piece(i) for i in subword_ids(llama, b"\xe4\xb8")] == ["<0xE4>", "<0xB8>"]
        assert subword_ids(llama, "") == []

    def test_what_an_old_vocabulary_lacks_is_left_out(self):
        """Without bytes to fall back on, and with letters made small."""
        table = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "cat": 1}, unk_token="<unk>"))
        table.normalizer = tokenizers.normalizers.Lowercase()
        table.add_special_tokens(["<unk>"])
        old = vocabulary_from_files({"tokenizer.json": table.to_str().encode()})
        assert subword_ids(old, "Cat") == [1]
        assert subword_ids(old, "dog") == []
        assert subword_ids(old, b"\xff") == []
