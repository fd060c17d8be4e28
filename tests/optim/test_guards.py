"""Norms, clipping and the refusal of what is not finite."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.optim import guards

numbers = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8)


@settings(deadline=None, max_examples=30)
@given(a=numbers, b=numbers, max_norm=st.floats(0.1, 100))
def test_clipping_is_t5xs(a, b, max_norm):
    grads = {"a": jnp.array(a, jnp.float32), "b": {"c": jnp.array(b, jnp.float32)}}
    norm = guards.global_norm(grads)
    exact = np.linalg.norm(np.concatenate([a, b]).astype(np.float64))
    np.testing.assert_allclose(norm, exact, rtol=1e-6, atol=1e-18)
    clipped = guards.clip_by_global_norm(grads, norm, max_norm)
    factor = max_norm * min(1 / max_norm, 1 / exact if exact else np.inf)
    np.testing.assert_allclose(clipped["a"], np.array(a) * factor, rtol=2e-6, atol=1e-30)
    assert float(guards.global_norm(clipped)) <= max_norm * (1 + 1e-6)


def test_small_gradients_pass_unchanged_whatever_the_threshold():
    grads = {"a": jnp.array([0.1, 0.2, 1e-30])}
    for max_norm in (0.3, 0.7, 1.0, 3.3):
        clipped = guards.clip_by_global_norm(grads, guards.global_norm(grads), max_norm)
        np.testing.assert_array_equal(clipped["a"], grads["a"])


def test_the_norm_of_bfloat16_gradients_is_summed_in_float32():
    grads = {"a": jnp.ones((300, 300), jnp.bfloat16)}
    norm = guards.global_norm(grads)
    assert norm.dtype == jnp.float32
    assert float(norm) == 300.0
    clipped = guards.clip_by_global_norm(grads, norm, 1.0)
    assert clipped["a"].dtype == jnp.bfloat16


def test_zero_and_empty_gradients():
    grads = {"a": jnp.zeros(3)}
    clipped = guards.clip_by_global_norm(grads, guards.global_norm(grads), 1.0)
    np.testing.assert_array_equal(clipped["a"], np.zeros(3))
    assert float(guards.global_norm({})) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_and_refused(bad):
    good, poisoned = {"a": jnp.ones(3), "n": jnp.int32(4)}, {"a": jnp.array([1, bad, 1]), "n": jnp.int32(5)}
    assert bool(jnp.isfinite(guards.global_norm(good)))
    ok = jnp.isfinite(guards.global_norm(poisoned))
    assert not bool(ok)
    kept = guards.select_finite(ok, poisoned, good)
    np.testing.assert_array_equal(kept["a"], good["a"])
    assert int(kept["n"]) == 4
    taken = guards.select_finite(jnp.bool_(True), poisoned, good)
    assert int(taken["n"]) == 5


def test_global_norm_equals_optaxs():
    grads = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.array(-2.0)}
    np.testing.assert_allclose(guards.global_norm(grads), optax.tree.norm(grads), rtol=1e-7)
