"""The history of gradient norms: what is usual passes untouched, what is not is clipped or refused, and all resumes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.frozen_layers import FrozenLayers
from t5x_scale.optim.groups import Groups
from t5x_scale.optim.history import NormHistory
from t5x_scale.optim.interface import frozen_paths, stop_frozen
from t5x_scale.optim.schedules import Constant, Cosine

AXES = {"w": ("embed",)}
PARAMS = {"w": jnp.asarray([3.0, -0.0, 1.0])}
DIRECTION = np.array([0.6, 0.8, 0.0], np.float32)
ADAMW = AdamW(Constant(0.1), weight_decay=0.0)


class Plain:
    """An optimiser whose updates are its gradients, so that a test sees them."""

    learning_rate = Constant(1.0)

    def make(self, axes, options=()):
        def update(grads, state, params):
            return grads, state + 1

        return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

    def state_axes(self, abstract_params, axes):
        return ()


_steps = {}


def run(history, norms, state=None):
    """The norms of the updates that gradients of these norms became, and the state after them."""
    transformation = history.make(AXES)
    step = _steps.setdefault(repr(history), jax.jit(transformation.update))
    state, lengths = transformation.init(PARAMS) if state is None else state, []
    for norm in norms:
        updates, state = step({"w": jnp.asarray(norm * DIRECTION)}, state, PARAMS)
        lengths.append(float(jnp.linalg.norm(updates["w"])))
    return np.array(lengths), state


def expected(norms, z=3.0, growth=1.5, decay=0.97, warmup=25):
    """The definition, in plain numbers."""
    mean, variance, lengths = 0.0, 0.0, []
    for count, norm in enumerate(norms):
        x = math.log(norm)
        limit = mean + max(z * math.sqrt(variance), math.log(growth))
        x = min(x, limit) if count >= warmup else x
        lengths.append(math.exp(x))
        weight = max(1 - decay, 1 / (count + 1))
        mean, variance = mean + weight * (x - mean), (1 - weight) * (variance + weight * (x - mean) ** 2)
    return np.array(lengths), mean, variance


@settings(max_examples=30, deadline=None)
@given(logs=st.lists(st.floats(-5, 5), min_size=30, max_size=60))
def test_it_clips_as_defined(logs):
    norms = np.exp(np.array(logs, np.float64)).astype(np.float32)
    lengths, mean, variance = expected(norms.tolist())
    found, state = run(NormHistory(Plain()), norms)
    np.testing.assert_allclose(found, lengths, rtol=2e-4)
    np.testing.assert_allclose(float(state.mean), mean, atol=2e-4)
    np.testing.assert_allclose(float(state.variance), variance, rtol=1e-3, atol=1e-4)
    assert int(state.exceeded) == np.sum(lengths < norms * (1 - 1e-6))


def test_the_first_of_a_history_are_a_plain_mean_and_variance():
    logs = np.random.default_rng(0).normal(0, 0.3, 20)
    _, state = run(NormHistory(Plain()), np.exp(logs))
    np.testing.assert_allclose([state.mean, state.variance], [logs.mean(), logs.var()], rtol=1e-4)


def test_usual_gradients_pass_in_every_bit():
    norms = np.exp(np.random.default_rng(1).normal(0, 0.1, 300)).astype(np.float32)
    for action in ("clip", "refuse"):
        history = NormHistory(Plain(), action=action, z_score=6.0)
        transformation = history.make(AXES)
        state = transformation.init(PARAMS)
        step = jax.jit(transformation.update)
        for norm in norms[:100]:
            grads = {"w": jnp.asarray(norm * DIRECTION)}
            updates, state = step(grads, state, PARAMS)
            assert np.asarray(updates["w"]).tobytes() == np.asarray(grads["w"]).tobytes()
        assert int(state.exceeded) == 0


def test_a_refused_update_changes_nothing():
    history = NormHistory(AdamW(Cosine(peak=0.1, total_steps=100), weight_decay=0.1), action="refuse")
    transformation = history.make(AXES)
    state, params = transformation.init(PARAMS), PARAMS
    for _ in range(30):
        updates, state = transformation.update({"w": jnp.asarray(DIRECTION)}, state, params)
        params = optax.apply_updates(params, updates)
    params["w"] = params["w"].at[2].set(-0.0)
    updates, after = transformation.update({"w": jnp.asarray(100 * DIRECTION)}, state, params)
    moved = optax.apply_updates(params, updates)
    assert np.asarray(moved["w"]).tobytes() == np.asarray(params["w"]).tobytes()
    for new, old in zip(jax.tree.leaves(after.inner), jax.tree.leaves(state.inner), strict=True):
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()
    assert (int(after.exceeded), int(after.count)) == (1, 31)


@pytest.mark.parametrize("action", ["clip", "refuse"])
def test_a_change_that_lasts_is_followed(action):
    norms = np.full(150, 1.0, np.float32)
    norms[50:] = 20.0
    found, state = run(NormHistory(Plain(), action=action), norms)
    assert (found[50:55] < 3).all()
    np.testing.assert_allclose(found[-20:], 20.0, rtol=1e-5)
    assert 10 < int(state.exceeded) < 60


def test_nothing_to_learn_is_no_history():
    found, state = run(NormHistory(Plain()), np.zeros(5, np.float32))
    assert (found == 0).all()
    assert (int(state.count), float(state.mean), float(state.variance)) == (0, 0.0, 0.0)


def test_cut_anywhere_it_goes_on_alike():
    norms = np.exp(np.random.default_rng(2).normal(0, 0.7, 60)).astype(np.float32)
    history = NormHistory(ADAMW)
    whole, last = run(history, norms)
    for cut in (1, 24, 25, 40):
        first, state = run(history, norms[:cut])
        state = jax.tree.map(jnp.asarray, jax.device_get(state))
        second, end = run(history, norms[cut:], state)
        np.testing.assert_array_equal(np.concatenate([first, second]), whole)
        for new, old in zip(jax.tree.leaves(end), jax.tree.leaves(last), strict=True):
            assert np.asarray(new).tobytes() == np.asarray(old).tobytes()


def test_what_is_frozen_stays_known(trees):
    frozen = NormHistory(Groups(FrozenLayers(ADAMW, trained=[1]), [("token_embedder/.*", {"freeze": True})]))
    assert frozen_paths(frozen, trees.axes) == {"token_embedder/embedding"}
    params = jax.tree.map(jnp.asarray, trees.random(0))

    def total(params):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(stop_frozen(frozen, trees.axes, params)))

    grads = jax.grad(total)(params)
    assert not grads["token_embedder"]["embedding"].any()
    assert not grads["decoder"]["layers"]["gate"][0]
    assert grads["decoder"]["layers"]["gate"][1] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "clipp"}, "NormHistory.action is 'clipp' (did you mean 'clip'?)"),
        ({"z_score": -1}, "NormHistory.z_score is -1; expected a number of 0 or above"),
        ({"min_growth": 0.9}, "NormHistory.min_growth is 0.9; expected a number of 1 or above"),
        ({"decay": 1.0}, "NormHistory.decay is 1.0; expected a number from 0 to below 1"),
        ({"warmup_updates": 1}, "NormHistory.warmup_updates is 1"),
        ({"decay": "0.9"}, "NormHistory.decay is '0.9'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError) as error:
        NormHistory(ADAMW, **settings)
    assert message in str(error.value)
