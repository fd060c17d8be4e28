"""Arrays that TensorStore reads: any region, chunks in their order, errors of the caller's making."""

import errno
import os

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import files, lazy, zarr_arrays
from t5x_scale.core.zarr_arrays import open_arrays

VALUES = np.random.default_rng(0).normal(size=(4, 16, 6)).astype(np.float32)


class Unreadable(Exception):
    pass


def failure(called, reason):
    return Unreadable(f"{called}: {reason}")


def write(directory, chunks, values=VALUES, database=False):
    base = {"driver": "file", "path": f"{directory}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": "a.b/"} if database else {**base, "path": f"{directory}/a.b/"}
    spec = {"driver": "zarr", "kvstore": kvstore, "metadata": {"chunks": list(chunks)}}
    ts.open(spec, create=True, dtype=values.dtype, shape=values.shape).result().write(values).result()


@pytest.fixture(scope="module", params=[False, True], ids=["directories", "database"])
def directory(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("arrays")
    write(path, (2, 5, 6), database=request.param)
    return files.to_path(path)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_region(directory, data):
    array = open_arrays(directory, {"it": "a.b"}, failure)["it"]
    box = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2)))) for size in array.shape)
    np.testing.assert_array_equal(array.read(box), VALUES[box])


@pytest.mark.parametrize(
    ("chunks", "outer"), [((1, 16, 6), (0,)), ((4, 2, 6), (1,)), ((2, 16, 3), (0, 2)), ((4, 16, 6), (0,))]
)
def test_blocks_follow_the_chunks(tmp_path, chunks, outer):
    write(tmp_path, chunks)
    assert open_arrays(files.to_path(tmp_path), {"it": "a.b"}, failure)["it"].outer == outer


def test_errors_are_made_by_the_caller(tmp_path):
    write(tmp_path, (1, 16, 6))
    array = open_arrays(files.to_path(tmp_path), {"it": "a.b"}, failure)["it"]
    (tmp_path / "a.b" / "2.0.0").write_bytes(b"torn")
    np.testing.assert_array_equal(array.read((slice(0, 2),)), VALUES[:2])
    with pytest.raises(Unreadable, match=r"^it: [^\n]*$"):
        array.read()
    (tmp_path / "a.b" / "2.0.0").unlink()
    with pytest.raises(Unreadable, match=r"^it: NOT_FOUND"):
        array.read()
    with pytest.raises(Unreadable, match=r"^other: NOT_FOUND"):
        open_arrays(files.to_path(tmp_path), {"other": "a.c"}, failure)


def test_a_chunk_larger_than_the_cache_is_decoded_once(tmp_path, monkeypatch):
    """One device writes a leaf as one chunk: its blocks must not decode it again each."""
    write(tmp_path, VALUES.shape)
    monkeypatch.setattr(zarr_arrays, "_CACHE_BYTES", VALUES.nbytes // 4)
    array = open_arrays(files.to_path(tmp_path), {"it": "a.b"}, failure)["it"]
    regions = list(lazy.blocks(array, VALUES.nbytes // 8))
    array.read(regions[0])
    (tmp_path / "a.b" / "0.0.0").unlink()
    for region in regions:
        np.testing.assert_array_equal(array.read(region), VALUES[region])


def test_a_manifest_that_nobody_can_see_is_not_missing(tmp_path, monkeypatch):
    write(tmp_path, (1, 16, 6), database=True)

    def stat(path, *unused, **named):
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out", path)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(TimeoutError):
        open_arrays(files.to_path(tmp_path), {"it": "a.b"}, failure)
