"""Scaled frequencies of RoPE against the papers' formulas, pair by pair, and what must hold for all of them."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.layers.positions import Rope
from t5x_scale.layers.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    NtkScaling,
    YarnScaling,
    plain_frequencies,
)

ORIGINAL = 2048
BASES, ROTATED = st.sampled_from([100.0, 10000.0, 500000.0]), st.integers(2, 64).map(lambda half: 2 * half)
FACTORS = st.floats(1.0, 64.0)


def scalings(factor):
    return [LinearScaling(factor), NtkScaling(factor), YarnScaling(factor, ORIGINAL), Llama3Scaling(factor, ORIGINAL)]


@given(base=BASES, rotated=ROTATED, factor=FACTORS)
def test_no_pair_turns_faster_or_more_than_factor_times_slower(base, rotated, factor):
    plain = plain_frequencies(base, rotated)
    for scaling in scalings(factor):
        ratio = plain / scaling.frequencies(base, rotated)
        assert ratio.shape == (rotated // 2,)
        assert ratio.min() >= 1 - 1e-9, scaling
        assert ratio.max() <= factor * (1 + 1e-9), scaling
        # Faster pairs are never stretched more than slower ones.
        assert (np.diff(ratio) >= -1e-9 * factor).all(), scaling


@given(base=BASES, rotated=ROTATED)
def test_factor_one_changes_nothing(base, rotated):
    for scaling in scalings(1.0):
        np.testing.assert_allclose(scaling.frequencies(base, rotated), plain_frequencies(base, rotated), rtol=1e-12)
        assert scaling.amplitude() == 1.0


def test_ntk_stretches_the_slowest_pair_by_the_factor():
    ratio = plain_frequencies(10000.0, 16) / NtkScaling(8.0).frequencies(10000.0, 16)
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(8.0, rel=1e-12)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_pair_by_pair(truncate):
    base, rotated, factor = 10000.0, 64, 16.0
    got = YarnScaling(factor, ORIGINAL, truncate=truncate).frequencies(base, rotated)

    def pair(turns):
        return rotated * math.log(ORIGINAL / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = pair(32), pair(1)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    assert 0 < low < high < rotated // 2
    for i in range(rotated // 2):
        plain = base ** (-2 * i / rotated)
        share = min(max((i - low) / (high - low), 0), 1)
        assert got[i] == pytest.approx((1 - share) * plain + share * plain / factor, rel=1e-12)


def test_yarn_multiplies_the_logits():
    assert YarnScaling(16.0, ORIGINAL).amplitude() == pytest.approx(0.1 * math.log(16) + 1)
    assert YarnScaling(16.0, ORIGINAL, attention_factor=1.5).amplitude() == 1.5
    x, positions = np.random.default_rng(0).standard_normal((1, 3, 1, 8)).astype(np.float32), np.arange(3)[None]
    shapes = {"embed_dim": 8, "num_heads": 1, "head_dim": 8, "fraction": 0.5}

    def keys(factor):
        rope = Rope(**shapes, scaling=YarnScaling(4.0, ORIGINAL, attention_factor=factor))
        return np.asarray(rope.apply({}, x, positions, method="encode_keys"))

    np.testing.assert_allclose(keys(1.5)[..., :4], 1.5 * keys(1.0)[..., :4], rtol=1e-5)
    # What does not turn is not multiplied either.
    np.testing.assert_array_equal(keys(1.5)[..., 4:], x[..., 4:])


def test_llama3_pair_by_pair():
    """Wavelengths above original / low are stretched, below original / high not, smoothly between."""
    base, rotated, factor, original, low, high = 500000.0, 128, 8.0, 8192, 1.0, 4.0
    got = Llama3Scaling(factor, original, low, high).frequencies(base, rotated)
    kinds = set()
    for i in range(rotated // 2):
        plain = base ** (-2 * i / rotated)
        wavelength = 2 * math.pi / plain
        if wavelength < original / high:
            kinds.add("kept")
            expected = plain
        elif wavelength > original / low:
            kinds.add("stretched")
            expected = plain / factor
        else:
            kinds.add("between")
            smooth = (original / wavelength - low) / (high - low)
            expected = (1 - smooth) * plain / factor + smooth * plain
        assert got[i] == pytest.approx(expected, rel=1e-12)
    assert kinds == {"kept", "stretched", "between"}


def test_linear_scaling_divides_positions():
    x = np.random.default_rng(0).standard_normal((1, 3, 2, 8)).astype(np.float32)
    shapes = {"embed_dim": 8, "num_heads": 2, "head_dim": 8}
    scaled = Rope(**shapes, scaling=LinearScaling(4.0)).apply({}, x, jnp.array([[0, 4, 12]]), method="encode_keys")
    plain = Rope(**shapes).apply({}, x, jnp.array([[0, 1, 3]]), method="encode_keys")
    np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScaling(0.0), "LinearScaling.factor must be positive, not 0.0"),
        (lambda: YarnScaling(2.0, 0), "YarnScaling.original_length must be the context trained on, not 0"),
        (lambda: Llama3Scaling(2.0, 8, 4.0, 4.0), "low_frequency_factor=4.0 must be below high_frequency_factor=4.0"),
        (lambda: NtkScaling(2.0).frequencies(10.0, 2), "more than two features that turn, not 2"),
    ],
)
def test_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()
