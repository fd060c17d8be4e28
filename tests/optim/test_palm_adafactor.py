"""PaLM's optimiser against a numpy rewrite of its published order of operations, on stacked and separate layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten
from t5x_scale.optim.interface import LeafOptions
from t5x_scale.optim.palm_adafactor import PalmAdafactor, moment_weight
from t5x_scale.optim.schedules import Constant, ConstantThenRsqrt


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def numpy_steps(p, grads, rates, dtype, threshold=1.0):
    """The facts page, for one tensor of one layer."""
    p = np.asarray(p, dtype)
    v, m = np.zeros_like(p), np.zeros_like(p)
    for k, (g, lr) in enumerate(zip(grads, rates, strict=True), start=1):
        g, lr, beta2 = np.asarray(g, dtype), dtype(lr), dtype(1 - k**-0.8)
        v = beta2 * v + (1 - beta2) * (g * g + dtype(1e-30))
        y = g / np.sqrt(v)
        if threshold:
            y = y / max(1, rms(y) / dtype(threshold))
        m = dtype(0.9) * m + dtype(0.1) * (lr * max(rms(p), dtype(1e-3)) * y)
        p = (1 - lr * lr) * p - m
    return p


@pytest.mark.parametrize("threshold", [1.0, None])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_equals_the_numpy_rewrite(trees, dtype, threshold):
    schedule = ConstantThenRsqrt(peak=0.3, constant_steps=4)  # Rates large enough for every term to show.
    params = trees.random(0)
    grads = [trees.random(seed, scale=3.0 if seed == 5 else 0.5) for seed in range(1, 9)]
    ours, _ = trees.run(PalmAdafactor(schedule, clipping_threshold=threshold), params, trees.axes, grads)

    rates = [0.3 * np.sqrt(4 / max(k, 4)) for k in range(8)]
    start, apart = flatten(trees.apart(params)), [flatten(trees.apart(g)) for g in grads]
    moved = flatten(trees.apart(ours))
    for path, p in start.items():
        expected = numpy_steps(p, [g[path] for g in apart], rates, dtype, threshold)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(moved[path], expected, rtol=0, atol=1e-6 * scale, err_msg=path)
        # The comparison is of something: it moved, and the other threshold moves it elsewhere.
        assert np.abs(moved[path] - p).max() > 0.01 * scale
        other = numpy_steps(p, [g[path] for g in apart], rates, dtype, None if threshold else 1.0)
        assert np.abs(other - expected).max() > 1e-3 * scale, path


def test_stacked_and_separate_layers_follow_the_same_trajectory(trees):
    optimizer = PalmAdafactor(ConstantThenRsqrt(peak=0.05, constant_steps=10))
    params, grads = trees.random(0), [trees.random(seed) for seed in range(1, 21)]
    stacked, _ = trees.run(optimizer, params, trees.axes, grads)
    separate, _ = trees.run(optimizer, trees.apart(params), trees.apart(trees.axes), [trees.apart(g) for g in grads])
    stacked, separate = flatten(trees.apart(stacked)), flatten(separate)
    for path, expected in separate.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(stacked[path], expected, rtol=0, atol=2**-22 * scale, err_msg=path)


def test_optaxs_own_adafactor_does_not():
    """The reason for this one: optax scales a stack by the RMS of the whole stack."""
    params = {"w": jnp.stack([jnp.full((4, 4), 1.0), jnp.full((4, 4), 0.01)])}
    tx = optax.adafactor(0.1, factored=False, multiply_by_parameter_scale=True, clipping_threshold=None)
    theirs, _ = tx.update({"w": jnp.ones((2, 4, 4))}, tx.init(params), params)
    ours = PalmAdafactor(Constant(0.1), momentum=0.0, weight_decay_exponent=None).make({"w": ("layers", "a", "b")})
    mine, _ = ours.update({"w": jnp.ones((2, 4, 4))}, ours.init(params), params)
    assert float(theirs["w"][0, 0, 0]) == pytest.approx(float(theirs["w"][1, 0, 0]))
    np.testing.assert_allclose(mine["w"][:, 0, 0], [-0.1, -0.001], rtol=1e-6)


def test_equals_optaxs_adafactor_on_single_layers(trees):
    """With one layer a tensor, optax's chain is the same algorithm but for the decay."""
    key = jax.random.key(0)
    params = {"w": jax.random.normal(key, (8, 6)), "b": jax.random.normal(key, (6,)) * 1e-4}
    axes = {"w": ("embed", "mlp"), "b": ("mlp",)}
    grads = [jax.tree.map(lambda x, i=i: jnp.sin(x * 1000 * i), params) for i in range(1, 6)]
    ours, _ = trees.run(PalmAdafactor(Constant(0.1), weight_decay_exponent=None), params, axes, grads)
    tx = optax.adafactor(0.1, factored=False, momentum=0.9)
    theirs, state = params, tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    for name in params:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("k", "beta2"),
    [
        (1, 0.0),
        (2, 0.425651),
        (10, 0.841511),
        (100, 0.974881),
        (1000, 0.996019),
        (10_000, 0.999369),
        (255_000, 0.9999527),
    ],
)
def test_second_moment_decay_has_the_published_values(k, beta2):
    weight = float(moment_weight(jnp.int32(k), 0.8))
    assert 1 - weight == pytest.approx(beta2, abs=5.1e-7)
    assert weight == pytest.approx(k**-0.8, rel=1e-6)


def test_the_first_update_is_a_tenth_of_rate_times_scale():
    params = {"w": jnp.array([3.0, -4.0, 0.0, 5.0])}
    tx = PalmAdafactor(Constant(1e-2)).make({"w": ("embed",)})
    updates, _ = tx.update({"w": jnp.array([1e-3, -7.0, 2.0, 1e2])}, tx.init(params), params)
    move = 0.1 * 1e-2 * np.sqrt(50 / 4) * np.array([1, -1, 1, 1])
    np.testing.assert_allclose(updates["w"], -move - 1e-4 * np.array([3, -4, 0, 5]), rtol=1e-6)


def test_a_parameter_at_zero_can_leave_it_and_no_gradient_is_no_step():
    params = {"w": jnp.zeros(4)}
    tx = PalmAdafactor(Constant(1e-2)).make({"w": ("embed",)})
    updates, state = tx.update({"w": jnp.array([1.0, -1.0, 0.0, 0.0])}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [-1e-6, 1e-6, 0, 0], rtol=1e-6)
    updates, _ = tx.update({"w": jnp.zeros(4)}, state, params)
    assert bool(jnp.all(jnp.isfinite(updates["w"])))


def test_a_rate_multiplier_scales_the_rate_in_step_and_decay(trees):
    params, grads = {"w": jnp.array([3.0, -4.0])}, [{"w": jnp.array([1.0, 2.0])}] * 3
    half, _ = trees.run(
        PalmAdafactor(Constant(0.1)), params, {"w": ("embed",)}, grads, {"w": LeafOptions(lr_multiplier=0.5)}
    )
    expected, _ = trees.run(PalmAdafactor(Constant(0.05)), params, {"w": ("embed",)}, grads)
    np.testing.assert_allclose(half["w"], expected["w"], rtol=1e-6)


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match=r"PalmAdafactor.learning_rate is 0.01; .*schedules.Constant\(0.01\)"):
        PalmAdafactor(0.01)
    with pytest.raises(UserError, match=r"PalmAdafactor.momentum is 1.0; expected a number from 0 to below 1"):
        PalmAdafactor(Constant(0.1), momentum=1.0)
    with pytest.raises(UserError, match="momentum_dtype is 'float16'"):
        PalmAdafactor(Constant(0.1), momentum_dtype="float16")
    with pytest.raises(UserError, match="clipping_threshold is 0"):
        PalmAdafactor(Constant(0.1), clipping_threshold=0)
