import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import batch as batch_lib
from t5x_scale.data.objectives import Example
from t5x_scale.data.rows.packing import FITS, assemble, pack

CAPACITY = 24
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=120)


def rows_of(packed):
    return [
        packed.order[begin:end].tolist()
        for begin, end in zip(packed.row_starts[:-1], packed.row_starts[1:], strict=True)
    ]


def naive_best_fit_decreasing(lengths, capacity):
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in range(len(rooms)) if sum(rooms[row]) + length <= capacity]
        if not fitting:
            rooms.append([])
            fitting = [len(rooms) - 1]
        rooms[max(fitting, key=lambda row: sum(rooms[row]))].append(length)
    return rooms


def naive_first_fit(lengths, capacity):
    rows = []
    for item, length in enumerate(lengths):
        row = next((row for row in rows if sum(lengths[i] for i in row) + length <= capacity), None)
        if row is None:
            rows.append(row := [])
        row.append(item)
    return rows


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.sampled_from(FITS))
def test_every_item_lies_in_one_row_with_room_for_it(lengths, fit):
    rows = rows_of(pack(np.array(lengths, np.int64), CAPACITY, fit))
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[item] for item in row) <= CAPACITY for row in rows)
    assert all(row == sorted(row) for row in rows)


@settings(max_examples=300, deadline=None)
@given(LENGTHS)
def test_moving_lengths_together_is_best_fit_decreasing(lengths):
    rows = rows_of(pack(np.array(lengths, np.int64), CAPACITY, "best"))
    # Which of two equally full rows is taken is free, and changes how full no row becomes.
    filled = sorted(sum(lengths[item] for item in row) for row in rows)
    assert filled == sorted(map(sum, naive_best_fit_decreasing(lengths, CAPACITY)))


@settings(max_examples=200, deadline=None)
@given(LENGTHS)
def test_first_fit_is_first_fit(lengths):
    assert rows_of(pack(np.array(lengths, np.int64), CAPACITY, "first")) == naive_first_fit(lengths, CAPACITY)


@pytest.mark.parametrize(("length", "mean"), [(512, 6.2), (2048, 6.2), (2048, 7.5), (8192, 7.5)])
def test_rows_of_realistic_documents_are_full(length, mean):
    documents = np.random.default_rng(3).lognormal(mean, 1.2, 30_000).astype(np.int64) + 1
    rests = documents % length
    pieces = np.concatenate([np.full(np.sum(documents // length), length), rests[rests > 0]])
    best, first = (pack(pieces, length, fit).num_rows for fit in FITS)
    assert pieces.sum() / (best * length) > 0.995
    assert best <= first


def test_equal_items_share_rows_evenly():
    packed = pack(np.full(10, 5), 16, "best")
    np.testing.assert_array_equal(np.diff(packed.row_starts), [3, 3, 3, 1])


def test_what_cannot_be_packed():
    for lengths in ([0], [17], [-1, 3]):
        with pytest.raises(ValueError, match="do not fit rows of 16"):
            pack(np.array(lengths), 16)
    with pytest.raises(ValueError, match="unknown fit 'worst'; known are best, first"):
        pack(np.array([1]), 16, "worst")


def example(length, first, prefix=0):
    tokens = np.arange(first, first + length, dtype=np.int32)
    return Example(tokens, tokens + 1, np.full(length, 0.5, np.float32), prefix)


def test_a_row_position_by_position():
    fields = assemble(
        [[example(2, 0, 1), example(3, 10, 2)], [], [example(6, 20)]],
        6,
        attend_across_documents=False,
        with_prefix=True,
    )
    assert batch_lib.check_batch(fields) == (3, 6)
    expected = {
        batch_lib.INPUT_TOKENS: [[0, 1, 10, 11, 12, 0], [0] * 6, [20, 21, 22, 23, 24, 25]],
        batch_lib.TARGET_TOKENS: [[1, 2, 11, 12, 13, 0], [0] * 6, [21, 22, 23, 24, 25, 26]],
        batch_lib.LOSS_WEIGHTS: [[0.5] * 5 + [0], [0] * 6, [0.5] * 6],
        batch_lib.SEGMENT_IDS: [[1, 1, 2, 2, 2, 0], [0] * 6, [1] * 6],
        batch_lib.POSITIONS: [[0, 1, 0, 1, 2, 0], [0] * 6, [0, 1, 2, 3, 4, 5]],
        batch_lib.PREFIX: [[1, 0, 1, 1, 0, 0], [0] * 6, [0] * 6],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(fields[name], value, name)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("prefix", [False, True])
def test_optional_fields_are_absent_unless_asked_for(across, prefix):
    fields = assemble([[example(3, 5)]], 4, attend_across_documents=across, with_prefix=prefix)
    assert (batch_lib.PREFIX in fields) == prefix
    assert (batch_lib.SEGMENT_IDS in fields) == (batch_lib.POSITIONS in fields) == (not across)


def test_a_row_that_is_too_full():
    with pytest.raises(ValueError, match="7 positions or more in a row of 6"):
        assemble([[example(4, 0), example(3, 0)]], 6, attend_across_documents=True, with_prefix=False)
