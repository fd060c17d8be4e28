"""Lazy arrays: whatever box is read of a view equals numpy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core import lazy


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(axis=st.integers(0, 2), max_bytes=st.integers(1, 4000), data=st.data())
def test_a_mean_is_that_of_all_parts_in_any_box(axis, max_bytes, data):
    array = random((3, 17, 5))
    view = lazy.mean(lazy.from_array(array), axis, max_bytes)
    expected = array.mean(axis, keepdims=True, dtype=np.float64).astype(np.float32)
    box = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2)))) for size in view.shape)
    np.testing.assert_array_equal(view.read(box), expected[box])


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="no mean"):
        lazy.mean(lazy.from_array(np.zeros((0, 3))), 0)
