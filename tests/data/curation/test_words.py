import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.data.curation import words

TEXT = st.text(max_size=200)


@given(TEXT)
def test_spaced_words_are_those_of_split_where_no_script_stands_alone(text):
    found = words.split_spaced(text)
    if not found.alone.any():
        # Control characters that are neither space nor letter stay inside words here.
        assert len(found.lengths) >= len(text.split()) - text.count("\x1c")
    assert found.lengths.sum() == np.count_nonzero(words.classes(text) != words.SPACE)


@given(st.lists(st.text("abcäßжд0123456789", min_size=1, max_size=12), max_size=20))
def test_words_of_one_case_and_form(parts):
    plain = words.split_normalised(" ".join(parts))
    assert plain.lengths.sum() == sum(len(part.casefold()) for part in parts)
    shouted = words.split_normalised("  -- ".join(parts) + "!")
    np.testing.assert_array_equal(plain.hashes, shouted.hashes)


def test_equal_words_have_equal_hashes_wherever_they_stand():
    found = words.split_spaced("to be or not to be")
    assert len(found.hashes) == 6
    assert found.hashes[0] == found.hashes[4]
    assert found.hashes[1] == found.hashes[5]
    assert len(set(found.hashes.tolist())) == 4
    assert words.split_spaced("ab").hashes[0] != words.split_spaced("ba").hashes[0]


def test_scripts_without_spaces():
    found = words.split_spaced("日本語 and ไทย")
    assert found.lengths.tolist() == [1, 1, 1, 3, 1, 1, 1]
    assert found.alone.tolist() == [True, True, True, False, True, True, True]
    # Spaces and joiners inside words of other scripts.
    assert len(words.split_spaced("안녕하세요 세계").hashes) == 2
    assert len(words.split_normalised("नमस्ते می‌خواهم").hashes) == 2


def test_a_run_too_long_for_a_word_is_characters():
    assert len(words.split_normalised("a" * words.LONG_WORD).hashes) == 1
    assert len(words.split_normalised("b " + "a" * (words.LONG_WORD + 1) + " c").hashes) == words.LONG_WORD + 3


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 6))
def test_ngrams_are_equal_where_their_words_are(values, n):
    hashes = words.mix(np.array(values, np.uint64))
    grams = words.ngrams(hashes, n)
    expected = [tuple(values[start : start + n]) for start in range(len(values) - n + 1)]
    assert len(grams) == len(expected)
    assert len(set(zip(grams.tolist(), expected, strict=True))) == len(set(expected)) == len(set(grams.tolist()))


def test_hashes_are_the_same_in_every_process():
    code = "from t5x_scale.data.curation.words import split_spaced; print(split_spaced('a déjà vu 日').hashes.tolist())"
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert outputs == {f"{words.split_spaced('a déjà vu 日').hashes.tolist()}\n"}
