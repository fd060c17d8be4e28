"""Noise and signal of gradients against gradients whose noise is known, and against the laws' own formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.laws import mccandlish
from t5x_scale.optim.noise_scale import Part, make_part, noise_and_signal


def test_equal_parts_give_the_published_estimate():
    parts = Part(jnp.array([3.0, 5.0, 4.0, 6.0]), jnp.full(4, 16.0))
    noise, signal = mccandlish.estimate(4.5, 1.5**2, 16, 64)
    assert [float(x) for x in noise_and_signal(parts, jnp.float32(1.5), jnp.float32(64))] == pytest.approx(
        [noise, signal]
    )


def test_parts_of_different_weights_give_no_bias():
    random = np.random.default_rng(0)
    weights = np.array([4.0, 16.0, 32.0, 12.0])
    signal, deviation, found = np.full(30, 0.4), 1.5, []
    for _ in range(300):
        means = signal + random.normal(size=(4, 30)) * deviation / np.sqrt(weights)[:, None]
        whole = np.average(means, axis=0, weights=weights)
        parts = Part(np.sum(means**2, axis=1), weights)
        found.append(noise_and_signal(parts, np.linalg.norm(whole), weights.sum()))
    noise, square = np.mean(found, axis=0)
    assert noise == pytest.approx(30 * deviation**2, rel=0.03)
    assert square == pytest.approx(np.sum(signal**2), rel=0.03)


def test_gradients_that_are_sums_become_means():
    part = make_part({"a": jnp.array([6.0, 0.0]), "b": jnp.array([8.0], jnp.bfloat16)}, jnp.float32(2))
    assert (float(part.square), float(part.weight)) == (25.0, 2.0)


def test_parts_without_tokens_do_not_count_and_one_says_nothing():
    full = noise_and_signal(Part(jnp.array([3.0, 5.0]), jnp.full(2, 8.0)), jnp.float32(1.5), jnp.float32(16))
    parts = Part(jnp.array([3.0, 0.0, 5.0]), jnp.array([8.0, 0.0, 8.0]))
    np.testing.assert_allclose(noise_and_signal(parts, jnp.float32(1.5), jnp.float32(16)), full, rtol=1e-6)
    alone = noise_and_signal(Part(jnp.array([3.0, 0.0]), jnp.array([8.0, 0.0])), jnp.float32(1.7), jnp.float32(8))
    assert np.isnan(alone).all()
