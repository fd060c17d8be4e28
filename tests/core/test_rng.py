"""Streams of randomness."""

import jax
import numpy as np
import pytest

from t5x_scale.core.rng import STREAMS, make_root_key, stream_key


def bits(key):
    return tuple(jax.random.key_data(key).tolist())


def test_keys_are_functions_of_seed_stream_and_step():
    root = make_root_key(3)
    assert bits(stream_key(root, "dropout", 7)) == bits(stream_key(make_root_key(3), "dropout", 7))
    traced = jax.jit(lambda step: stream_key(root, "dropout", step))(7)
    assert bits(traced) == bits(stream_key(root, "dropout", 7))


def test_no_two_streams_steps_or_seeds_share_a_key():
    keys = [bits(stream_key(make_root_key(seed), name, step)) for seed in (0, 1) for name in STREAMS for step in (0, 1)]
    assert len(set(keys)) == len(keys)


def test_the_numbers_are_frozen():
    """They are part of the format of a run: another number is another run."""
    assert STREAMS == {"params": 0, "dropout": 1, "data": 2, "sampling": 3, "router": 4}
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(5, impl="threefry2x32"), 3), 11)
    assert bits(stream_key(make_root_key(5), "sampling", 11)) == bits(expected)


def test_threefry_whatever_the_default():
    with jax.default_prng_impl("rbg"):
        key = make_root_key(0)
    assert jax.random.key_impl(key) == jax.random.key_impl(make_root_key(0))
    assert np.asarray(jax.random.key_data(key)).shape == (2,)


def test_unknown_stream():
    with pytest.raises(KeyError, match="drop"):
        stream_key(make_root_key(0), "drop")
