"""Frozen layers: not a bit of them changes, and the others train as if they were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten, map_with_path
from t5x_scale.optim.adafactor import Adafactor
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.frozen_layers import FrozenLayers
from t5x_scale.optim.groups import Groups
from t5x_scale.optim.interface import frozen_paths, stop_frozen
from t5x_scale.optim.lion import Lion
from t5x_scale.optim.muon import Muon
from t5x_scale.optim.palm_adafactor import PalmAdafactor
from t5x_scale.optim.schedules import Constant

ADAMW = AdamW(Constant(0.1), weight_decay=0.5, decay_min_rank=0)
ROWS = {
    "adamw": ADAMW,
    "palm_adafactor": PalmAdafactor(Constant(0.05)),
    "adafactor": Adafactor(Constant(0.05), min_dim_to_factor=4),
    "lion": Lion(Constant(0.02)),
    "muon": Muon(Constant(0.05)),
}


def is_stacked(path):
    return path.startswith("decoder/layers/")


def only(layer, tree):
    return map_with_path(lambda path, leaf: leaf[layer : layer + 1] if is_stacked(path) else leaf, tree)


@pytest.mark.parametrize("name", ROWS)
def test_trained_layers_train_as_if_they_were_alone(name, trees):
    params, grads = trees.random(0), [trees.random(seed) for seed in range(1, 4)]
    after, state = trees.run(FrozenLayers(ROWS[name], trained=[1]), params, trees.axes, grads)
    alone, state_alone = trees.run(ROWS[name], only(1, params), trees.axes, [only(1, g) for g in grads])
    for path, values in flatten(after).items():
        found = values[1:] if is_stacked(path) else values
        np.testing.assert_allclose(found, flatten(alone)[path], rtol=1e-6, err_msg=path)
        if is_stacked(path):
            assert values[0].tobytes() == flatten(params)[path][0].tobytes()
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, state_alone)


def test_frozen_layers_do_not_change_in_any_bit(trees):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), trees.random(0))
    params["decoder"]["layers"]["pre_norm"]["scale"] = params["decoder"]["layers"]["pre_norm"]["scale"].at[1].set(-0.0)
    grads = jax.tree.map(jnp.asarray, trees.random(1))
    grads["decoder"]["layers"] = jax.tree.map(lambda g: g.at[1].set(jnp.nan), grads["decoder"]["layers"])
    after, _ = trees.run(FrozenLayers(ADAMW, train_every=1), params, trees.axes, [jax.tree.map(jnp.ones_like, grads)])
    assert all(np.any(np.asarray(v) != np.asarray(flatten(params)[p])) for p, v in flatten(after).items())
    after, _ = trees.run(FrozenLayers(ADAMW, trained=(0,)), params, trees.axes, [grads] * 2)
    for path, values in flatten(after).items():
        old = np.asarray(flatten(params)[path])
        assert np.isfinite(values.astype(np.float32)).all()
        if is_stacked(path):
            assert values[1].tobytes() == old[1].tobytes()
            assert np.all(values[0] != old[0])
        else:
            assert np.any(values != old)


def test_every_so_many_trains_the_last_of_each():
    axes = {"stack": ("layers", "embed"), "rows": ("embed",)}
    params = {"stack": jnp.ones((10, 3)), "rows": jnp.ones(3)}
    transformation = FrozenLayers(ADAMW, train_every=5).make(axes)
    updates, state = transformation.update(params, transformation.init(params), params)
    assert np.flatnonzero(np.asarray(updates["stack"])[:, 0]).tolist() == [4, 9]
    assert state[0].mu["stack"].shape == (2, 3)
    assert FrozenLayers(ADAMW, train_every=5).state_axes(params, axes)[0].mu == {
        "stack": (None, "embed"),
        "rows": ("embed",),
    }


@pytest.mark.parametrize("around", [True, False])
def test_groups_freeze_what_is_outside_of_the_stack(around, trees):
    rules = [("(?!decoder/layers/).*", {"freeze": True})]
    optimizer = FrozenLayers(ADAMW, trained=[0])
    optimizer = Groups(optimizer, rules) if around else FrozenLayers(Groups(ADAMW, rules), trained=[0])
    assert frozen_paths(optimizer, trees.axes) == {"token_embedder/embedding", "decoder/final_norm/scale"}
    params = trees.random(0)
    after, state = trees.run(optimizer, params, trees.axes, [trees.random(1)])
    changed = {path for path, values in flatten(after).items() if np.any(values != flatten(params)[path])}
    assert changed == {path for path in flatten(params) if is_stacked(path)}
    assert set(state[0].mu) == {"decoder"}
    assert optimizer.learning_rate is ADAMW.learning_rate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trained": [2]}, "FrozenLayers.trained is [2], but decoder/layers/"),
        ({"trained": [0, 0]}, "each named once"),
        ({"trained": []}, "at least one must train"),
        ({"trained": [-1]}, "FrozenLayers.trained is [-1]; expected numbers of layers, from 0"),
        ({"train_every": 3}, "FrozenLayers.train_every is 3, which does not divide the 2 layers"),
        ({"train_every": 0}, "FrozenLayers.train_every is 0; expected a whole number of 1 or more"),
        ({}, "needs one of trained and train_every"),
        ({"trained": [0], "train_every": 1}, "and not both"),
    ],
)
def test_wrong_settings_are_named(settings, message, trees):
    with pytest.raises(UserError) as error:
        FrozenLayers(ADAMW, **settings).make(trees.axes).init(trees.random(0))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("around", [True, False])
def test_what_is_frozen_has_no_gradient(around, trees):
    rules = [("(?!decoder/layers/).*", {"freeze": True})]
    optimizer = FrozenLayers(ADAMW, trained=[1])
    optimizer = Groups(optimizer, rules) if around else FrozenLayers(Groups(ADAMW, rules), trained=[1])
    params = jax.tree.map(jnp.asarray, trees.random(0))

    def loss(params):
        leaves = jax.tree.leaves(stop_frozen(optimizer, trees.axes, params))
        return sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)

    value, grads = jax.value_and_grad(loss)(params)
    assert value == sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))
    for path, found in flatten(grads).items():
        if is_stacked(path):
            np.testing.assert_array_equal(found[1], 2 * flatten(params)[path][1])
            assert not found[0].any()
        else:
            assert not found.any()


def test_what_is_not_frozen_has_its_gradient(trees):
    params = jax.tree.map(jnp.asarray, trees.random(0))
    assert stop_frozen(ADAMW, trees.axes, params) is params
    assert jax.tree.all(jax.tree.map(jnp.array_equal, stop_frozen(Groups(ADAMW, []), trees.axes, params), params))
