import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from t5x_scale.core.contiguous import to_contiguous


@settings(max_examples=200, deadline=None)
@given(data=st.data(), shape=npst.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=7))
def test_turned_arrays_are_copied(data, shape):
    scales = data.draw(st.lists(st.sampled_from([1, 1, 40]), min_size=len(shape), max_size=len(shape)))
    shape = tuple(min(size * scale, 200) for size, scale in zip(shape, scales, strict=True))
    if np.prod(shape) > 10**6:
        shape = tuple(min(size, 30) for size in shape)
    whole = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    turned = whole.transpose(data.draw(st.permutations(range(len(shape)))))
    turned = turned[tuple(slice(None, None, data.draw(st.sampled_from([1, -1, 2]))) for _ in shape)]
    copy = to_contiguous(turned)
    assert copy.flags.c_contiguous
    np.testing.assert_array_equal(copy, turned)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.complex128, np.bool_])
def test_every_bit_is_kept(dtype):
    raw = np.random.default_rng(0).integers(0, 2, 300 * 70 * np.dtype(dtype).itemsize, np.uint8)
    turned = (raw if dtype == np.bool_ else raw * 255).view(dtype).reshape(300, 70).T
    assert to_contiguous(turned).tobytes() == turned.tobytes()
    assert to_contiguous(turned).dtype == turned.dtype


def test_nothing_and_what_is_row_major_already():
    empty = np.zeros((3, 0, 2)).T
    assert to_contiguous(empty).shape == (2, 0, 3)
    whole = np.zeros((3, 4))
    assert to_contiguous(whole) is whole
