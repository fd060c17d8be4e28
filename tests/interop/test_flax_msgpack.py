"""Trees that Flax wrote itself, read without it."""

import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.interop import flax_msgpack

DTYPES = [np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=3), dtype=st.sampled_from(DTYPES), max_chunk=st.sampled_from([8, 2**30])
)
def test_arrays_scalars_and_chunks(shape, dtype, max_chunk):
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    tree = {"a": {"b": array, "c": 2 + 3j}, "d": np.float32(1.5), "e": "text", "f": 7}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serialization, "MAX_CHUNK_SIZE", max_chunk)
        data = serialization.msgpack_serialize(tree)
    found = flax_msgpack.decode(data)
    assert found["a"]["b"].dtype == array.dtype
    assert found["a"]["b"].shape == array.shape
    assert found["a"]["b"].tobytes() == array.tobytes()
    assert (found["a"]["c"], found["d"], found["e"], found["f"]) == (2 + 3j, 1.5, "text", 7)


def test_what_is_cut_short_or_something_else_is_refused():
    data = serialization.msgpack_serialize({"a": np.zeros(100, np.float32)})
    for broken in (data[:-7], data + b"\x00", b"", b"\xc1"):
        with pytest.raises(ValueError, match="no tree of arrays"):
            flax_msgpack.decode(broken)
