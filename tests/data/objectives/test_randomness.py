import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.data.objectives import RowKeys, randomness


def test_words_are_those_of_each_generator_in_turn():
    generators = list(RowKeys(3, np.arange(4)))
    first, second = randomness.draw_words(generators, 2), randomness.draw_words(generators, 3)
    for row, generator in enumerate(RowKeys(3, np.arange(4))):
        expected = generator.bit_generator.random_raw(5)
        np.testing.assert_array_equal(np.concatenate([first[row], second[row]]), expected)
    assert randomness.draw_words([], 3).shape == (0, 3)


def test_the_stream_of_a_row_is_the_same_on_any_day():
    # If these change, so do the batches of every run that draws random numbers.
    assert randomness.draw_words(RowKeys(0, np.array([0])), 2).tolist() == [
        [213000021201967259, 4455796210202625458],
    ]


@given(st.integers(1, 2**31), st.integers(0, 2**64 - 1))
def test_integers_stay_below_their_bound(bound, word):
    result = randomness.to_below(np.array([word], np.uint64), np.array([bound]))[0]
    assert 0 <= result < bound
    assert abs(int(result) - word * bound // 2**64) <= 1


def test_unit_numbers_lie_in_the_half_open_interval():
    units = randomness.to_unit(np.array([0, 2**64 - 1], np.uint64))
    assert units[0] == 0
    assert 0.999 < units[1] < 1


def test_every_subset_is_equally_likely():
    words = np.random.default_rng(0).integers(0, 2**32, (60_000, 6), dtype=np.uint32)
    subsets = randomness.random_subsets(words, 3)
    assert (np.diff(subsets, axis=1) > 0).all()
    found = dict(zip(*np.unique(subsets @ [1, 10, 100], return_counts=True), strict=True))
    expected = 60_000 / 20
    assert len(found) == len(list(itertools.combinations(range(6), 3)))
    chi_square = sum((count - expected) ** 2 / expected for count in found.values())
    assert chi_square < 45  # 19 degrees of freedom: one in a thousand is above 43.8, and the seed is fixed.


def test_equal_words_still_give_subsets_of_the_right_size():
    words = np.array([[5, 5, 5, 1, 9], [1, 2, 3, 4, 5], [7, 7, 7, 7, 7]], np.uint32)
    assert randomness.random_subsets(words, 2).tolist() == [[0, 3], [0, 1], [0, 1]]
    assert randomness.random_subsets(words, 0).shape == (3, 0)
    assert randomness.random_subsets(words, 5).tolist() == [[0, 1, 2, 3, 4]] * 3
