"""Factored Adafactor: against optax on single matrices, and what it does with stacks."""

import jax
import numpy as np
import optax

from t5x_scale.core.trees import flatten
from t5x_scale.optim.adafactor import Adafactor, factored_dims
from t5x_scale.optim.schedules import Constant


def arrays(seed, shapes):
    return {name: np.random.default_rng([seed, i]).standard_normal(s).astype("f") for i, (name, s) in enumerate(shapes)}


def test_equals_optax_on_single_matrices(trees):
    shapes = [("w", (12, 20)), ("t", (20, 12)), ("small", (3, 20)), ("b", (20,))]
    axes = {"w": ("embed", "mlp"), "t": ("mlp", "embed"), "small": ("heads", "mlp"), "b": ("mlp",)}
    params, grads = arrays(0, shapes), [arrays(seed, shapes) for seed in range(1, 11)]
    ours, state = trees.run(Adafactor(Constant(0.1), min_dim_to_factor=8, momentum=0.9), params, axes, grads)
    tx = optax.adafactor(0.1, min_dim_size_to_factor=8, momentum=0.9)

    @jax.jit
    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    theirs, their_state = params, tx.init(params)
    for g in grads:
        theirs, their_state = step(theirs, their_state, g)
    for name in params:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=2e-6)
    assert set(state[0].v) == {"small", "b"}
    assert state[0].v_row["w"].shape == (12,)
    assert state[0].v_col["w"].shape == (20,)
    np.testing.assert_allclose(state[0].v_row["w"], their_state[0].v_row["w"], rtol=2e-6)


def test_the_sides_of_a_matrix_are_its_largest_dimensions_stacks_aside():
    assert factored_dims((64, 8, 16), ("layers", "embed", "mlp"), 8) == (1, 2)
    assert factored_dims((8, 64, 16, 8), ("layers", "expert", "mlp", "embed"), 8) == (3, 2)
    assert factored_dims((32, 4, 16), ("embed", "heads", "kv"), 8) == (2, 0)
    assert factored_dims((64, 64, 64), ("layers", "expert", "embed"), 8) is None
    assert factored_dims((32, 7), ("embed", "heads"), 8) is None
    assert factored_dims((), (), 8) is None


def test_axes_of_the_factors_drop_the_reduced_dimension(trees):
    optimizer = Adafactor(Constant(0.1), min_dim_to_factor=4)
    state = optimizer.state_axes(trees.random(0), trees.axes)[0]
    rows, columns, full = flatten(state.v_row), flatten(state.v_col), flatten(state.v)
    assert rows["token_embedder/embedding"] == ("embed",)
    assert columns["token_embedder/embedding"] == ("vocab",)
    expert = "decoder/layers/mlp/experts/wo/kernel"
    assert (rows[expert], columns[expert]) == (("layers", "expert", "embed"), ("layers", "expert", "mlp"))
    assert full == {
        "decoder/layers/pre_norm/scale": ("layers", "embed"),
        "decoder/layers/gate": ("layers",),
        "decoder/final_norm/scale": ("embed",),
    }


def test_the_state_is_small():
    shape = jax.ShapeDtypeStruct((4, 1024, 4096), np.float32)
    tx = Adafactor(Constant(0.1)).make({"w": ("layers", "embed", "mlp")})
    state = jax.eval_shape(tx.init, {"w": shape})
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < shape.size / 500
