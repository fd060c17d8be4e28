"""The contract of every optimiser. Adding an optimiser is adding a row to `ROWS`."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_scale.core.trees import flatten
from t5x_scale.optim.adafactor import Adafactor
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.frozen_layers import FrozenLayers
from t5x_scale.optim.groups import Groups
from t5x_scale.optim.history import NormHistory
from t5x_scale.optim.interface import frozen_paths
from t5x_scale.optim.lion import Lion
from t5x_scale.optim.muon import Muon
from t5x_scale.optim.palm_adafactor import PalmAdafactor
from t5x_scale.optim.schedules import Constant
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.shardings import make_sharding

STEPS = 20
RULES = [
    ("token_embedder/.*", {"freeze": True}),
    (".*scale", {"lr_multiplier": 0.5, "no_decay": True}),
]
ROWS = {
    "palm_adafactor": PalmAdafactor(Constant(0.05)),
    "adafactor": Adafactor(Constant(0.05), min_dim_to_factor=4),
    "adafactor_momentum": Adafactor(Constant(0.05), min_dim_to_factor=4, momentum=0.9, weight_decay_exponent=2.0),
    "adamw": AdamW(Constant(0.02)),
    "adamw_bfloat16_momentum": AdamW(Constant(0.02), momentum_dtype="bfloat16"),
    "lion": Lion(Constant(0.02)),
    "muon": Muon(Constant(0.05)),
    "groups_of_palm_adafactor": Groups(PalmAdafactor(Constant(0.05)), RULES),
    "groups_of_adafactor": Groups(Adafactor(Constant(0.05), min_dim_to_factor=4), RULES),
    "groups_of_muon": Groups(Muon(Constant(0.05)), RULES),
    "frozen_layers_of_adamw": FrozenLayers(AdamW(Constant(0.05)), trained=[1]),
    "clipped_by_history_adamw": NormHistory(AdamW(Constant(0.02)), warmup_updates=5),
    "refused_by_history_muon": NormHistory(Muon(Constant(0.05)), action="refuse", warmup_updates=5),
    "groups_of_history_of_adafactor": Groups(NormHistory(Adafactor(Constant(0.05), min_dim_to_factor=4)), RULES),
    "groups_of_frozen_layers_of_adafactor": Groups(
        FrozenLayers(Adafactor(Constant(0.05), min_dim_to_factor=4), trained=[1]), RULES
    ),
}


def describe(tree):
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)


@pytest.fixture(scope="module", params=ROWS)
def row(request, trees):
    """One optimiser, and how it did on a quadratic, its step compiled with the state donated."""
    optimizer = ROWS[request.param]
    goal = trees.random(7)
    tx = optimizer.make(trees.axes)

    def loss(params):
        return sum(jnp.sum((p - g) ** 2) for p, g in zip(jax.tree.leaves(params), jax.tree.leaves(goal), strict=True))

    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value, updates

    params = jax.tree.map(jnp.asarray, trees.random(1))
    abstract = jax.eval_shape(lambda: params)
    state = tx.init(params)
    before = describe(state)
    step = jax.jit(step, donate_argnums=(0, 1))
    losses = []
    for _ in range(STEPS):
        params, state, value, updates = step(params, state)
        losses.append(float(value))
    return types.SimpleNamespace(
        optimizer=optimizer,
        abstract=abstract,
        before=before,
        state=state,
        params=params,
        updates=updates,
        losses=losses,
        axes=optimizer.state_axes(abstract, trees.axes),
    )


def is_axes(x):
    return type(x) is tuple and all(name is None or isinstance(name, str) for name in x)


def test_state_and_parameters_keep_shape_and_dtype(row):
    assert describe(row.state) == row.before
    assert describe(row.params) == describe(row.abstract)


def test_updates_are_float32_and_shaped_like_the_parameters(row):
    assert describe(row.updates) == describe(row.abstract)


def test_loss_goes_down(row):
    assert all(np.isfinite(row.losses))
    assert row.losses[-1] < 0.7 * row.losses[0]


def test_state_axes_have_the_structure_and_ranks_of_the_state(row):
    names, names_tree = jax.tree.flatten(row.axes, is_leaf=is_axes)
    leaves, state_tree = jax.tree.flatten(row.state)
    assert names_tree == state_tree
    assert [len(n) for n in names] == [leaf.ndim for leaf in leaves]


def test_state_axes_have_the_sizes_of_the_parameters_axes(row, trees):
    """A dimension called `mlp` in the state is as long as `mlp` of some parameter: the right one was dropped."""
    sizes = {}
    for path, names in flatten(trees.axes).items():
        for name, size in zip(names, flatten(row.abstract)[path].shape, strict=True):
            sizes.setdefault(name, set()).add(size)
    for names, leaf in zip(jax.tree.leaves(row.axes, is_leaf=is_axes), jax.tree.leaves(row.state), strict=True):
        for name, size in zip(names, leaf.shape, strict=True):
            assert name is None or size in sizes[name]


def test_the_state_can_be_sharded_by_its_axes(row):
    mesh = MeshConfig(data=1, fsdp=4, model=2).make_mesh(jax.devices()[:8])
    rules = {"embed": ("fsdp",), "mlp": ("model",), "heads": ("model",), "vocab": ("model",)}
    sharded = jax.tree.map(
        lambda names, leaf: jax.device_put(leaf, make_sharding(mesh, rules, names, leaf.shape)),
        row.axes,
        row.state,
        is_leaf=is_axes,
    )
    sizes = {leaf.size // leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(sharded)}
    assert 8 in sizes


def test_bfloat16_parameters_keep_their_dtype_and_train(row, trees):
    optimizer = row.optimizer
    tx = optimizer.make(trees.axes)
    params = jax.tree.map(jnp.asarray, trees.random(1, jnp.bfloat16))

    @jax.jit
    def step(params):
        state = tx.init(params)
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    after, state = step(params)
    assert describe(after) == describe(params)
    assert describe(state) == row.before  # Float32 moments, whatever the parameters are.
    assert any(bool(jnp.any(a != b)) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(params), strict=True))


def test_frozen_parameters_are_reported_and_have_no_state(row, trees):
    frozen = frozen_paths(row.optimizer, trees.axes)
    assert frozen == ({"token_embedder/embedding"} if isinstance(row.optimizer, Groups) else set())
    kept = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(row.state)}
    assert frozen == set() or not any("token_embedder" in path for path in kept)


def test_the_schedule_is_there_to_be_logged(row):
    assert 0 < float(row.optimizer.learning_rate(0)) < 1


def test_parameters_and_axes_that_differ_are_refused(row, trees):
    tx = row.optimizer.make(trees.axes)
    wrong = dict(row.params)
    wrong["decoder"] = {**wrong["decoder"], "final_norm": {"scale": jnp.zeros((2, 8))}}
    with pytest.raises(ValueError, match="decoder/final_norm/scale has shape"):
        tx.init(wrong)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_stacked_and_separate_layers_follow_the_same_trajectory(name, trees):
    params, grads = trees.random(0), [trees.random(seed) for seed in range(1, 6)]
    stacked, _ = trees.run(ROWS[name], params, trees.axes, grads)
    separate, _ = trees.run(ROWS[name], trees.apart(params), trees.apart(trees.axes), [trees.apart(g) for g in grads])
    stacked = flatten(trees.apart(stacked))
    for path, expected in flatten(separate).items():
        np.testing.assert_allclose(stacked[path], expected, rtol=0, atol=2**-21 * np.abs(expected).max(), err_msg=path)
