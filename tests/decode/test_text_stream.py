"""Streamed text is the text, and no piece of it ends within a character."""

import functools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t5x_scale.data.vocabulary import load_vocabulary
from t5x_scale.decode.text_stream import TextStream

VOCABULARIES = {name: load_vocabulary(name) for name in ("bytes", "stdlib_8k")}
SHORT = {"window": 6, "kept": 3}
LONG = {}


def _cut(ids, sizes):
    pieces, start = [], 0
    for size in [*sizes, len(ids)]:
        pieces.append(ids[start : start + size])
        start += size
    return pieces


@functools.cache
def _ids(name):
    # Bytes of a character in three parts and control tokens come often enough to meet each other.
    size = VOCABULARIES[name].size
    awkward = VOCABULARIES[name].encode("é你\U0001f600\ufffd")
    return st.lists(st.one_of(st.integers(0, size - 1), st.sampled_from([*awkward, 1])), max_size=40)


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("options", [SHORT, LONG], ids=["short_window", "long_window"])
def test_pieces_join_to_the_text(name, options):
    vocabulary = VOCABULARIES[name]

    @settings(max_examples=80, deadline=None)
    @given(_ids(name), st.lists(st.integers(0, 5), max_size=20))
    @example(vocabulary.encode("naïve 你好 \U0001f600 " * 3), [1] * 60)
    def check(ids, sizes):
        stream = TextStream(vocabulary, **options)
        pieces = [stream.push(part) for part in _cut(ids, sizes)]
        assert not any(piece.endswith("\ufffd") for piece in pieces)
        assert "".join(pieces) + stream.flush() == vocabulary.decode(ids)
        assert stream.flush() == ""

    check()


@pytest.mark.parametrize("name", VOCABULARIES)
@settings(max_examples=30, deadline=None)
@given(prompt=st.text(max_size=12), text=st.text(max_size=12))
def test_the_prompt_is_context_and_is_not_written(name, prompt, text):
    vocabulary = VOCABULARIES[name]
    stream = TextStream(vocabulary, vocabulary.encode(prompt))
    pieces = [stream.push([token]) for token in vocabulary.encode(text)]
    assert "".join(pieces) + stream.flush() == text.encode(errors="replace").decode()


def test_a_character_comes_with_its_last_byte():
    vocabulary = VOCABULARIES["bytes"]
    stream = TextStream(vocabulary)
    assert [stream.push([token]) for token in vocabulary.encode("a你b")] == ["a", "", "", "你", "b"]


def test_a_character_that_never_ends_is_said_at_the_end():
    vocabulary = VOCABULARIES["bytes"]
    stream = TextStream(vocabulary)
    assert stream.push(vocabulary.encode("你")[:2]) == ""
    assert stream.flush() == "\ufffd"


class _Llama:
    """Words after a space, of which the first is written without it: decoding depends on what came before."""

    def decode(self, ids):
        return "".join(f" w{i}" for i in ids)[1:]


def test_spaces_survive_a_vocabulary_that_drops_the_first():
    stream = TextStream(_Llama(), context=[7], **SHORT)
    assert "".join(stream.push([i]) for i in range(30)) == "".join(f" w{i}" for i in range(30))
