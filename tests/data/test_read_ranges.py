"""Pieces of different lengths, from mapped files and through TensorStore."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.data.freezing import freeze
from t5x_scale.data.stored_array import StoredArray

TOKENS = 199


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    def make(chunk):
        directory = tmp_path_factory.mktemp("ranges") / str(chunk)
        settings_ = {"source": {}, "vocabulary_fingerprint": "v", "vocabulary_size": 1000, "separator_id": 1}
        store = freeze([np.arange(2, TOKENS + 1)], directory, chunk=chunk, **settings_)
        return store, StoredArray(directory / "tokens", np.dtype(np.uint16), TOKENS)

    return {chunk: make(chunk) for chunk in (9, 40, 500)}


@settings(max_examples=50, deadline=None)
@given(chunk=st.sampled_from([9, 40, 500]), mapped=st.booleans(), data=st.data())
def test_ranges_are_slices(stores, chunk, mapped, data):
    reader = stores[chunk][0] if mapped else stores[chunk][1]
    bounds = st.lists(st.tuples(st.integers(0, TOKENS), st.integers(0, TOKENS)).map(sorted), max_size=5)
    ranges = data.draw(bounds)
    expected, offsets = np.full(5 * (TOKENS + 1), -1, np.int32), []
    for index, (start, stop) in enumerate(ranges):
        offsets.append(index * (TOKENS + 1))
        expected[offsets[-1] : offsets[-1] + stop - start] = np.append(np.arange(2, TOKENS + 1), 1)[start:stop]
    starts, stops = np.array(ranges, np.int64).reshape(-1, 2).T
    out = np.full_like(expected, -1)
    reader.read_ranges(starts, stops - starts, out, np.array(offsets, np.int64))
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(("start", "length", "offset"), [(-1, 2, 0), (190, 10, 0), (0, 5, 6), (0, 5, -1), (0, -1, 0)])
def test_ranges_outside(stores, mapped, start, length, offset):
    reader = stores[40][0] if mapped else stores[40][1]
    with pytest.raises(ValueError, match="a range asked for is outside"):
        reader.read_ranges(
            *(np.array([value]) for value in (start, length)), np.zeros(10, np.int32), np.array([offset])
        )
