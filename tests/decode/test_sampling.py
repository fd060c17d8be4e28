"""Choosing tokens: the filters are exact, the draws follow the distribution and nothing but it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.decode.sampling import SamplingConfig, filter_logits, log_probabilities, sample

LOGITS = st.lists(st.integers(-30, 30), min_size=8, max_size=8).map(lambda values: np.array([values], np.float32) / 4)


def _nucleus(logits, top_k, top_p):
    """The definition, with a loop, in float64."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[: top_k or None]
    weights = np.exp(np.array([logits[i] for i in order], np.float64) - max(logits))
    weights /= weights.sum()
    kept, total = [], 0.0
    for i, weight in zip(order, weights, strict=True):
        kept.append((i, total))
        total += weight
    return kept


_filter_logits = jax.jit(filter_logits, static_argnums=1)


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.sampled_from([None, 0, 3, 100]), st.sampled_from([None, 0.05, 0.81]))
def test_filters_keep_the_smallest_sets(logits, top_k, top_p):
    filtered = np.asarray(_filter_logits(logits, SamplingConfig(top_k=top_k, top_p=top_p)))[0]
    kept = set(np.flatnonzero(np.isfinite(filtered)))
    np.testing.assert_array_equal(filtered[list(kept)], logits[0][list(kept)])
    limit = 1.0 if top_p is None else top_p
    for i, before in _nucleus(logits[0], top_k, top_p):
        # At the very edge float32 may decide either way.
        if limit >= 1.0 or abs(before - limit) > 1e-5:
            assert (i in kept) == (before < limit)
    assert len(kept) <= (top_k or 8)


def test_equal_logits_keep_the_lower_ids():
    filtered = filter_logits(jnp.zeros((1, 6)), SamplingConfig(top_k=2))
    assert np.isfinite(filtered)[0].tolist() == [True, True, False, False, False, False]


def test_draws_follow_the_distribution():
    logits = jnp.array([2.0, 1.0, 0.0, -1.0, 0.5])
    count = 20_000
    config = SamplingConfig(temperature=2.0, top_k=4, seed=5)
    draw = jax.jit(lambda rows: sample(jnp.tile(logits, (count, 1)), config, rows, jnp.full(count, 9)))
    shares = np.bincount(draw(jnp.arange(count)), minlength=5) / count
    kept = np.array([2.0, 1.0, 0.0, -np.inf, 0.5]) / 2.0
    expected = np.exp(kept) / np.exp(kept).sum()
    assert shares[3] == 0
    # Four standard deviations of a share.
    assert np.all(np.abs(shares - expected) < 4 * np.sqrt(0.25 / count))


_sample = jax.jit(sample, static_argnums=1)


def test_greedy_takes_the_likeliest_and_filters_never_lose_it():
    logits = jax.random.normal(jax.random.key(0), (16, 30))
    rows, best = jnp.arange(16), np.argmax(logits, axis=-1)
    for config in (
        SamplingConfig(temperature=0.0, top_k=5),
        SamplingConfig(temperature=3.0, top_k=1),
        SamplingConfig(temperature=3.0, top_p=1e-6),
    ):
        np.testing.assert_array_equal(_sample(logits, config, rows, rows), best)


def test_a_draw_is_a_function_of_seed_row_and_position():
    logits = jnp.zeros((1, 1000))

    def draw(seed, row, position):
        return int(_sample(logits, SamplingConfig(seed=seed), jnp.array([row]), jnp.array([position]))[0])

    draws = {draw(*where) for where in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32 - 1, 0, 0)]}
    assert len(draws) == 5
    many = _sample(jnp.zeros((3, 1000)), SamplingConfig(), jnp.array([4, 0, 7]), jnp.array([1, 0, 2]))
    assert many.tolist() == [draw(0, 4, 1), draw(0, 0, 0), draw(0, 7, 2)]


def test_log_probabilities_are_the_models_own():
    logits = jax.random.normal(jax.random.key(1), (3, 7))
    expected = np.asarray(jax.nn.log_softmax(logits))[[0, 1, 2], [6, 0, 3]]
    np.testing.assert_allclose(log_probabilities(logits, jnp.array([6, 0, 3])), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": 1e-9}, "temperature is 1e-09"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_settings_that_make_no_sense(options, part):
    with pytest.raises(UserError, match=part):
        SamplingConfig(**options)
