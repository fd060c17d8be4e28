"""Fingerprints: the same on every mesh and on the host, different for any other bits."""

import itertools
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_scale.checkpoint import integrity

DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.uint32, np.int8, np.uint8, np.bool_]


def make_array(shape, dtype, seed=0):
    """Arbitrary bits, not only well-behaved numbers: NaNs and infinities must be told apart too."""
    dtype = np.dtype(dtype)
    generator = np.random.default_rng(seed)
    if dtype == np.bool_:
        return generator.integers(0, 2, shape).astype(np.bool_)
    return generator.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8).view(dtype).reshape(shape)


def one(array):
    return integrity.fingerprints({"leaf": array})["leaf"]


def make_mesh():
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2, 3, 4)])
def test_device_and_host_agree(dtype, shape):
    array = make_array(shape, dtype)
    assert one(jnp.asarray(array)) == integrity.fingerprint_array(array)


def test_host_chunks_agree_with_one_device_program():
    array = make_array((3, 70_001), np.float32)
    assert one(jnp.asarray(array)) == integrity.fingerprint_array(array)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_eight_byte_elements(dtype):
    array = make_array((5, 3), dtype)
    with jax.enable_x64(True):
        assert one(jnp.asarray(array)) == integrity.fingerprint_array(array)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), dtype=st.sampled_from([*DTYPES, np.float64]), shape=st.lists(st.integers(0, 6), max_size=4))
def test_the_parts_of_a_tiling_combine_to_the_whole(data, dtype, shape):
    array = make_array(tuple(shape), dtype)
    cuts = [sorted({0, size, *data.draw(st.sets(st.integers(0, size), max_size=2))}) for size in shape]
    slices = [[slice(*pair) for pair in itertools.pairwise(axis)] or [slice(0, 0)] for axis in cuts]
    parts = [integrity.fingerprint_region(array[tile], tile, shape) for tile in itertools.product(*slices)]
    assert integrity.combine(data.draw(st.permutations(parts))) == integrity.fingerprint_array(array)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_long_and_short_runs_of_a_region(axis):
    array = make_array((3, 300, 401), ml_dtypes.bfloat16)
    whole = [slice(0, size) for size in array.shape]
    parts = []
    for start, stop in itertools.pairwise([0, 1, array.shape[axis]]):
        region = (*whole[:axis], slice(start, stop), *whole[axis + 1 :])
        parts.append(integrity.fingerprint_region(array[region], region, array.shape))
    assert integrity.combine(parts) == one(jnp.asarray(array))


def test_positions_wrap_beyond_32_bits():
    """A region of an array too large to hold: the position is the index modulo 2^32 wherever the region lies."""
    block, shape = make_array((2, 3, 5), np.float32), (2, 2**31, 2**33)
    region = (slice(0, 2), slice(2**31 - 3, 2**31), slice(2**33 - 5, 2**33))
    index = [np.array(range(part.start, part.stop), object) for part in region]
    position = (index[0][:, None, None] * 2**64 + index[1][:, None] * 2**33 + index[2]) % 2**32
    first, second = integrity._mix(block.view(np.uint32), position.astype(np.uint32), np.uint32)
    low, high = (int(lane.sum(dtype=np.uint64)) % 2**32 for lane in (first, second))
    assert integrity.fingerprint_region(block, region, shape) == high << 32 | low


def test_known_value():
    """The number is part of the format of a checkpoint: it must never change."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert integrity.to_text(integrity.fingerprint_array(array)) == "2645638dddeeb680"


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES[:-1]), size=st.integers(1, 400), seed=st.integers(0, 2**32 - 1))
def test_every_flipped_bit_changes_it(data, dtype, size, seed):
    array = make_array((size,), dtype, seed)
    raw = array.copy().view(np.uint8)
    index = data.draw(st.integers(0, raw.size - 1))
    raw[index] ^= 1 << data.draw(st.integers(0, 7))
    assert integrity.fingerprint_array(raw.view(dtype)) != integrity.fingerprint_array(array)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(2, 400), seed=st.integers(0, 2**32 - 1))
def test_swapped_elements_change_it(data, size, seed):
    array = make_array((size,), np.float32, seed)
    left, right = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    swapped = array.copy()
    swapped[[left, right]] = array[[right, left]]
    same = swapped.tobytes() == array.tobytes()
    assert (integrity.fingerprint_array(swapped) == integrity.fingerprint_array(array)) == same


def test_elements_that_differ_in_the_sign_only_are_told_apart_when_swapped():
    array = np.tile(np.array([1.0, -1.0], np.float32), 64)
    assert integrity.fingerprint_array(array) != integrity.fingerprint_array(-array)


@pytest.mark.parametrize("spec", [P(), P("x"), P("y", "x"), P(None, ("x", "y")), P("y", None, "x")])
def test_the_mesh_does_not_matter(spec):
    array = make_array((8, 16, 12), np.float32)
    sharded = jax.device_put(array, NamedSharding(make_mesh(), spec))
    assert one(sharded) == integrity.fingerprint_array(array)


def test_sharded_leaves_are_not_gathered():
    array = jax.device_put(make_array((64, 512), np.float32), NamedSharding(make_mesh(), P("x", "y")))
    program = integrity._fingerprint_all.lower([array]).compile().as_text()
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-(?:gather|reduce|to-all)", program)
    assert gathered, "the lanes of the shards must be combined somehow"
    for shape in gathered:
        assert np.prod([int(size) for size in shape.split(",") if size]) <= 16


def test_leaves_on_different_devices_and_on_the_host():
    array = make_array((8, 4), np.float32)
    mesh = make_mesh()
    tree = {
        "mesh": jax.device_put(array, NamedSharding(mesh, P("x"))),
        "one": jax.device_put(array, jax.devices()[3]),
        "host": array,
    }
    assert set(integrity.fingerprints(tree).values()) == {integrity.fingerprint_array(array)}


def test_paths_keep_the_order_of_the_tree():
    found = integrity.fingerprints({"b": (np.zeros(2), {"c": np.zeros(2)}), "a": 3})
    assert list(found) == ["a", "b/0", "b/1/c"]


def test_unknown_dtypes_are_refused():
    with pytest.raises(TypeError, match="no fingerprint for the dtype complex64"):
        integrity.fingerprints({"leaf": jnp.zeros(2, jnp.complex64)})
    with pytest.raises(TypeError, match="no fingerprint for the dtype complex64"):
        integrity.fingerprint_array(np.zeros(2, np.complex64))


@given(st.integers(0, 2**64 - 1))
def test_text_round_trip(fingerprint):
    assert integrity.from_text(integrity.to_text(fingerprint)) == fingerprint


def test_find_differences_names_changed_and_missing_leaves():
    assert integrity.find_differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 9, "d": 4}) == ["b", "c", "d"]
