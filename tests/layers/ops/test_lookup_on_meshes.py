"""A look-up on a mesh: rows and the table's gradient are those of one device, wherever the table lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.layers.ops.lookup import lookup
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.shardings import activation_rules, make_sharding

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
AXES = ("vocab", "embed")
MESHES = {
    "data": (MeshConfig(data=8, fsdp=1), rules.data_parallel()),
    "fsdp": (MeshConfig(fsdp=8), rules.fsdp()),
    "fsdp x model": (MeshConfig(fsdp=2, model=4), rules.fsdp_model()),
    "fsdp x model, vocabulary over fsdp": (MeshConfig(fsdp=2, model=4), rules.fsdp_model_vocab_fsdp()),
    "data x fsdp x model": (MeshConfig(data=2, fsdp=2, model=2), rules.fsdp_model()),
    "fsdp x context x model": (MeshConfig(fsdp=2, context=2, model=2), rules.fsdp_model()),
    "fsdp x stage x model": (MeshConfig(fsdp=2, stage=2, model=2), rules.fsdp_model()),
    "rows and features": (
        MeshConfig(data=2, fsdp=1, context=2, model=2),
        rules.make_rules({"batch": "data", "vocab": "model", "embed": "context"}),
    ),
}


def draw(rows=24, features=16, batch=8, length=12):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((rows, features)).astype(np.float32)
    # Some are outside, on both sides.
    indices = rng.integers(-2, rows + 2, (batch, length)).astype(np.int32)
    return table, indices, rng.standard_normal((batch, length, features)).astype(np.float32)


def value_and_gradient(table, indices, weight, axes=AXES, dtype=jnp.float32):
    def loss(table):
        rows = lookup(table, indices, axes, dtype)
        return jnp.sum(weight * rows.astype(jnp.float32)), rows

    gradient, rows = jax.grad(loss, has_aux=True)(table)
    return rows, gradient


def on_mesh(name, table, indices, weight, axes=AXES, dtype=jnp.float32):
    config, table_rules = MESHES[name]
    mesh = config.make_mesh()
    stored = make_sharding(mesh, table_rules, axes, table.shape)

    def placed(*arguments):
        with activation_rules(mesh, table_rules):
            return value_and_gradient(*arguments, axes, dtype)

    return jax.jit(placed, compiler_options=FAST)(jax.device_put(table, stored), indices, weight)


def check(name, **shape):
    table, indices, weight = draw(**shape)
    clipped = np.clip(indices, 0, len(table) - 1)
    expected = np.zeros_like(table)
    np.add.at(expected, clipped, weight)
    rows, gradient = on_mesh(name, table, indices, weight)
    np.testing.assert_array_equal(rows, table[clipped])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("batch", "length"), [(8, 12), (8, 5), (3, 12), (1, 4)])
@pytest.mark.parametrize("name", MESHES)
def test_rows_and_gradient(name, batch, length):
    """Also of batches that do not divide."""
    check(name, batch=batch, length=length)


@pytest.mark.parametrize("name", MESHES)
def test_gradients_that_are_summed_in_blocks(name, monkeypatch):
    """Blocks of two features or, where a device has no more, one of each shard that it gathers."""
    monkeypatch.setattr("t5x_scale.layers.ops.lookup._LARGEST", 2 * 24)
    check(name)


def test_features_that_cannot_be_shared_out():
    check("fsdp x model", features=18)


def test_a_table_of_positions():
    """Nothing splits its rows, and the positions of all sequences may stand in one row."""
    table, indices, weight = draw()
    for shape in ((8, 12), (1, 12)):
        rows, gradient = on_mesh("fsdp x model", table, indices[: shape[0]], weight[: shape[0]], (None, "embed"))
        wanted, wanted_gradient = value_and_gradient(table, indices[: shape[0]], weight[: shape[0]])
        np.testing.assert_array_equal(rows, wanted)
        np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_narrow_rows_is_summed_in_float32():
    """A token that stands 4,096 times: a sum in bfloat16 ends at 256."""
    table, indices = np.ones((8, 16), np.float32), np.zeros((8, 512), np.int32)
    weight = np.ones((8, 512, 16), np.float32)
    _, gradient = on_mesh("fsdp x model", table, indices, weight, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(gradient[0], 4096.0)
    np.testing.assert_array_equal(gradient[1:], 0.0)
