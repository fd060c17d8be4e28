"""Views on lazy arrays equal numpy's, whole and in any box; blocks tile; drawn numbers do not depend on blocks."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core import lazy
from t5x_scale.core.lazy import views as lazy_views


@st.composite
def arrays(draw, max_rank=3):
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=max_rank)))
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@st.composite
def views(draw):
    """A lazy array after a few views, and the numpy array it should equal."""
    array = draw(arrays())
    view = lazy.from_array(array)
    for _ in range(draw(st.integers(0, 4))):
        array, view = draw(st.sampled_from(STEPS))(draw, array, view)
    return array, view


def _transpose(draw, array, view):
    order = draw(st.permutations(range(array.ndim)))
    return array.transpose(order), lazy.transpose(view, order)


def _split(draw, array, view):
    axis = draw(st.integers(0, array.ndim - 1))
    size = array.shape[axis]
    first = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    sizes = (first, size // first)
    return array.reshape(*array.shape[:axis], *sizes, *array.shape[axis + 1 :]), lazy.split_axis(view, axis, sizes)


def _merge(draw, array, view):
    count = draw(st.integers(1, array.ndim))
    axis = draw(st.integers(0, array.ndim - count))
    merged = array.reshape(*array.shape[:axis], -1, *array.shape[axis + count :])
    return merged, lazy.merge_axes(view, axis, count)


def _slice(draw, array, view):
    axis = draw(st.integers(0, array.ndim - 1))
    start = draw(st.integers(0, array.shape[axis] - 1))
    stop = draw(st.integers(start + 1, array.shape[axis]))
    index = (*(slice(None),) * axis, slice(start, stop))
    return array[index], lazy.take_slice(view, axis, start, stop)


def _take(draw, array, view):
    axis = draw(st.integers(0, array.ndim - 1))
    indices = draw(st.lists(st.integers(0, array.shape[axis] - 1), min_size=1, max_size=8))
    return np.take(array, indices, axis), lazy.take(view, axis, indices)


def _select(draw, array, view):
    if array.ndim == 1:
        return array, view
    axis = draw(st.integers(0, array.ndim - 1))
    index = draw(st.integers(0, array.shape[axis] - 1))
    return np.take(array, index, axis), lazy.select(view, axis, index)


def _expand(draw, array, view):
    axis = draw(st.integers(0, array.ndim))
    return np.expand_dims(array, axis), lazy.expand(view, axis)


def _join(draw, array, view):
    axis = draw(st.integers(0, array.ndim - 1))
    return np.concatenate([array, array * 2, array], axis), lazy.concatenate([view, lazy.scale(view, 2.0), view], axis)


def _stack(draw, array, view):
    axis = draw(st.integers(0, array.ndim))
    return np.stack([array, array + 1], axis), lazy.stack([view, lazy.elementwise(lambda x: x + 1, view)], axis)


STEPS = [_transpose, _split, _merge, _slice, _take, _select, _expand, _join, _stack]


@given(views(), st.data(), st.sampled_from([1, 1 << 16]))
def test_views_equal_numpys(pair, data, picked_bytes):
    array, view = pair
    assert view.shape == array.shape
    np.testing.assert_array_equal(view.read(), array)
    box = []
    for size in array.shape:
        start = data.draw(st.integers(0, size))
        box.append(slice(start, data.draw(st.integers(start, size))))
    with mock.patch.object(lazy_views, "_PICKED_BYTES", picked_bytes):
        np.testing.assert_array_equal(view.read(box), array[tuple(box)])


@given(views(), st.integers(1, 200))
def test_blocks_tile_the_array(pair, max_bytes):
    array, view = pair
    seen = np.zeros(array.shape, int)
    for region in lazy.blocks(view, max_bytes):
        seen[region] += 1
        size = view.read(region).nbytes
        assert size <= max(max_bytes, array.itemsize)
    assert (seen == 1).all()


@pytest.mark.parametrize(("shape", "count"), [((), 1), ((0, 3), 0), ((3, 0), 0)])
def test_blocks_of_a_number_and_of_nothing(shape, count):
    assert len(list(lazy.blocks(lazy.full(shape, "float32"), 1))) == count


def test_blocks_cut_the_dimension_that_is_slowest_in_the_file():
    view = lazy.transpose(lazy.from_array(np.zeros((8, 4), np.float32)), (1, 0))
    assert view.outer == (1,)
    assert list(lazy.blocks(view, 4 * 4 * 2)) == [(slice(0, 4), slice(i, i + 2)) for i in range(0, 8, 2)]


def test_blocks_lie_on_a_grid_of_even_parts():
    array = lazy.full((3, 1376, 7), "float32")
    grid = lazy.block_shape(array, 500 * 7 * 4)
    assert grid == (1, 459, 7), "not 500, 500 and 376"
    for region in lazy.blocks(array, 500 * 7 * 4):
        assert all(part.start % size == 0 for part, size in zip(region, grid, strict=True))


def test_a_part_of_a_fused_tensor_is_read_without_the_others():
    values = np.arange(4 * 3 * 2 * 8192, dtype=np.float32).reshape(24, 8192)
    asked = []

    def read(region):
        asked.append(region[0].stop - region[0].start)
        return values[region]

    fused = lazy.LazyArray(values.shape, values.dtype, read)
    keys = lazy.select(lazy.split_axis(fused, 0, (4, 3, 2)), 1, 1)
    np.testing.assert_array_equal(keys.read(), values.reshape(4, 3, 2, 8192)[:, 1])
    assert asked == [2, 2, 2, 2]


def test_a_view_reads_only_what_is_asked_for():
    asked = []

    def read(region):
        asked.append(region)
        return np.zeros([part.stop - part.start for part in region], np.float32)

    source = lazy.LazyArray((100, 10), np.dtype(np.float32), read)
    lazy.take(lazy.stack([source, source]), 0, [1]).read((slice(0, 1), slice(7, 9)))
    assert asked == [(slice(7, 9), slice(0, 10))]


@given(st.integers(0, 3), st.integers(1, 300))
def test_drawn_numbers_are_a_function_of_seed_name_and_index(seed, max_bytes):
    drawn = lazy.normal((3, 4, 5), "float32", 0.5, seed, "a")
    whole, parts = drawn.read(), np.zeros((3, 4, 5), np.float32)
    for region in lazy.blocks(drawn, max_bytes):
        parts[region] = drawn.read(region)
    np.testing.assert_array_equal(parts, whole)
    assert not np.array_equal(whole, lazy.normal((3, 4, 5), "float32", 0.5, seed, "b").read())
    assert not np.array_equal(whole, lazy.normal((3, 4, 5), "float32", 0.5, seed + 1, "a").read())


def test_drawn_numbers_have_the_standard_deviation():
    drawn = lazy.normal((64, 256), "float32", 0.02, 0, "table").read()
    assert abs(drawn.std() / 0.02 - 1) < 0.02
    assert abs(drawn.mean()) < 1e-3
    assert lazy.normal((7,), "bfloat16", 1.0, 0, "vector").read().dtype == lazy.to_dtype("bfloat16")


def test_uniform_numbers_fill_the_unit_interval_in_whatever_boxes():
    drawn = lazy.uniform((16, 8, 64), 0, "share")
    whole = drawn.read()
    assert 0 <= whole.min() < 0.01
    assert 0.99 < whole.max() < 1
    assert abs(whole.mean() - 0.5) < 0.01
    np.testing.assert_array_equal(drawn.read((slice(3, 9), slice(2, 3), slice(5, 40))), whole[3:9, 2:3, 5:40])


def test_what_does_not_fit_is_refused():
    array = lazy.from_array(np.zeros((4, 6), np.float32))
    with pytest.raises(ValueError, match="does not split"):
        lazy.split_axis(array, 1, (4, 2))
    with pytest.raises(ValueError, match="into a dimension of 4"):
        lazy.take(array, 0, [4])
    with pytest.raises(ValueError, match="does not join"):
        lazy.concatenate([array, lazy.cast(array, "bfloat16")], 0)
    with pytest.raises(ValueError, match="a reader gave"):
        lazy.LazyArray((2,), np.dtype(np.float32), lambda region: np.zeros(3, np.float32)).read()


def test_a_scaling_by_one_changes_nothing_and_others_are_done_in_float32():
    narrow = lazy.from_array(np.array([1.0, 3.0], lazy.to_dtype("bfloat16")))
    assert lazy.scale(narrow, 1.0) is narrow
    assert lazy.scale(narrow, 1 / 3).read().dtype == narrow.dtype
