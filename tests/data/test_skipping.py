import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.skipping import SkipList

intervals = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda p: (p[0], p[0] + p[1])), max_size=5)


@given(intervals=intervals)
def test_equals_walking_over_the_rows(intervals):
    allowed = [row for row in range(400) if not any(first <= row < end for first, end in intervals)]
    skip = SkipList(intervals)
    assert skip.to_global(np.arange(300)).tolist() == allowed[:300]
    assert SkipList(reversed(intervals)) == skip
    assert hash(SkipList(skip.intervals)) == hash(skip)


def test_touching_intervals_are_one():
    assert SkipList([(5, 8), (0, 2), (8, 9)]).intervals == ((0, 2), (5, 9))


@pytest.mark.parametrize("interval", [(3, 3), (5, 2), (-1, 2), (1,), (1, 2, 3), "ab", 7, (1.5, 3), ("1", 3)])
def test_bad_intervals(interval):
    with pytest.raises(UserError, match="interval"):
        SkipList([interval])
