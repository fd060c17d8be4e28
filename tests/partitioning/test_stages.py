"""Layers on their stages, and what moves between stages, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.shardings import activation_rules, current_rules, make_sharding
from t5x_scale.partitioning.stages import check_rows, num_stages, shift, split_over_stages, to_stages

AXES = ("layers", "embed", "mlp")


def make_mesh(**sizes):
    number = int(np.prod(list(sizes.values())))
    return MeshConfig(**{"fsdp": 1, **sizes}).make_mesh(jax.devices()[:number])


@pytest.mark.parametrize(
    ("sizes", "repeats", "layers"),
    [({"stage": 4}, 1, 2), ({"stage": 2, "fsdp": 2, "model": 2}, 2, 1), ({"stage": 4, "fsdp": 2}, 3, 2),
     ({"stage": 8}, 2, 1), ({"stage": 2, "fsdp": 2}, 3, 1), ({}, 3, 2)],
)  # fmt: skip
def test_every_layer_comes_to_its_stage_and_its_gradient_back(sizes, repeats, layers):
    mesh, table = make_mesh(**sizes), rules.pipeline()
    stages = sizes.get("stage", 1)
    shape = (stages * repeats * layers, 4, 6)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weights = np.random.default_rng(1).standard_normal((repeats, stages, layers, 4, 6)).astype(np.float32)

    def placed(x):
        with activation_rules(mesh, table):
            y = to_stages(x, AXES, repeats, layers)
        return jnp.sum(y * weights), y

    stored = jax.device_put(x, make_sharding(mesh, table, AXES, shape))
    gradient, y = jax.jit(jax.grad(placed, has_aux=True))(stored)
    np.testing.assert_array_equal(y, x.reshape(weights.shape))
    np.testing.assert_array_equal(gradient, weights.reshape(shape))
    if stages > 1:
        assert y.sharding.shard_shape(y.shape)[:3] == (repeats, 1, layers)


def test_the_last_stage_hands_on_to_the_first():
    mesh = make_mesh(stage=4, fsdp=2)
    x = np.arange(4 * 2 * 3, dtype=np.float32).reshape(4, 2, 3)

    def shifted(x):
        with activation_rules(mesh, rules.pipeline()):
            return shift(x, ("batch", None))

    np.testing.assert_array_equal(jax.jit(shifted)(x), np.roll(x, 1, axis=0))
    np.testing.assert_array_equal(shift(x, ("batch", None)), x)


def test_rows_outside_of_a_pipeline():
    mesh = make_mesh(stage=2, fsdp=4)
    with activation_rules(mesh, rules.pipeline()):
        check_rows(8)
        with pytest.raises(UserError, match="micro-batches of 6 rows do not divide over fsdp=4; take fewer of them"):
            check_rows(6)
        for rows, parts in ((16, 8), (12, 4)):
            with split_over_stages(rows):
                split = [name for name in current_rules()[1]["batch"] if mesh.shape[name] > 1]
                assert np.prod([mesh.shape[name] for name in split]) == parts
    check_rows(7)
    with split_over_stages(7):
        assert num_stages() == 1


def test_rules_that_split_no_layers():
    with activation_rules(make_mesh(stage=2), rules.fsdp()), pytest.raises(UserError, match="needs the rule 'layers'"):
        num_stages()
