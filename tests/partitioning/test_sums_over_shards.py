"""What is computed shard by shard is what is computed at once, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.rules import fsdp, fsdp_model, make_rules
from t5x_scale.partitioning.shardings import activation_rules, make_sharding
from t5x_scale.partitioning.shards import Parameter, Rows, gather_parameter, sum_over_shards

RNG = np.random.default_rng(0)
ROWS, SCALE = (RNG.standard_normal(shape).astype(np.float32) for shape in ((8, 4, 8), (8, 4)))
STORED = ("expert", "embed", "mlp")
KERNEL = RNG.standard_normal((4, 8, 12)).astype(np.float32)
WEIGHT = RNG.standard_normal((8, 4, 8)).astype(np.float32)


def _layer(rows, scale, kernel):
    def share(rows, scale, kernel):
        h = jnp.tanh(jnp.einsum("bld,edf->blef", rows, kernel)) * scale[..., None, None]
        return jnp.einsum("blef,edf->bld", h, kernel)

    by_token = ("batch", "length")
    placed = [Rows(rows, (*by_token, None)), Rows(scale, by_token)]
    return sum_over_shards(share, placed, [Parameter(kernel, STORED, ("expert", None, "mlp"))])


def _loss(rows, scale, kernel):
    return jnp.sum(WEIGHT[: len(rows)] * _layer(rows, scale, kernel))


# Rules whose batch lies where the kernels do, and whose kernels are stored where they are used.
CROWDED = make_rules({"batch": ("data", "model"), "expert": ("data", "expert"), "mlp": "model", "embed": "fsdp"})


@pytest.mark.parametrize("rows", [8, 1])
@pytest.mark.parametrize(
    ("mesh", "rules"),
    [
        (MeshConfig(fsdp=8), fsdp()),
        (MeshConfig(fsdp=2, model=4), fsdp_model()),
        (MeshConfig(data=2, fsdp=2, model=2), fsdp_model()),
        (MeshConfig(fsdp=2, expert=2, model=2), fsdp_model()),
        (MeshConfig(data=2, fsdp=1, expert=2, context=2), fsdp_model()),
        (MeshConfig(fsdp=2, expert=4), fsdp()),
        (MeshConfig(data=2, fsdp=2, model=2), CROWDED),
    ],
)
def test_values_and_gradients(mesh, rules, rows):
    """Also of a batch of one row, which divides over nothing."""
    arguments = (ROWS[:rows], SCALE[:rows], KERNEL)
    function = jax.value_and_grad(_loss, argnums=(0, 1, 2))
    expected = jax.jit(function)(*arguments)
    mesh = mesh.make_mesh()

    def placed(*arguments):
        with activation_rules(mesh, rules):
            return function(*arguments)

    kernel = jax.device_put(KERNEL, make_sharding(mesh, rules, STORED, KERNEL.shape))
    got = jax.jit(placed)(*arguments[:2], kernel)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-4), got, expected)


def test_the_gradient_of_a_gathered_parameter_lies_where_it_is_stored():
    mesh, rules = MeshConfig(fsdp=4, model=2).make_mesh(), fsdp_model()
    stored = make_sharding(mesh, rules, ("embed", "mlp"), (8, 4))

    def gradient(kernel):
        with activation_rules(mesh, rules):
            return jax.grad(lambda k: jnp.sum(jnp.square(gather_parameter(k, ("embed", "mlp")))))(kernel)

    kernel = jax.device_put(np.ones((8, 4), np.float32), stored)
    got = jax.jit(gradient)(kernel)
    assert got.sharding.is_equivalent_to(stored, 2)
    np.testing.assert_array_equal(got, 2.0)


def test_outside_of_rules_the_function_is_called():
    rows, free = jnp.ones((3, 2)), (None, None)
    got = sum_over_shards(lambda x, k: jnp.sum(x * k), [Rows(rows, free)], [Parameter(2 * rows, free, free)])
    assert float(got) == 12


def test_of_a_gathered_parameter_only_the_shard_is_kept_for_the_backward_pass():
    mesh, rules = MeshConfig(fsdp=8).make_mesh(), fsdp()
    shape = (16, 4, 64, 64)
    stored = make_sharding(mesh, rules, (None, *STORED), shape)
    kernels = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=stored)

    def loss(kernels, rows):
        def layer(rows, kernel):
            return _layer(rows, jnp.ones(rows.shape[:2]), kernel), None

        with activation_rules(mesh, rules):
            return jnp.sum(jax.lax.scan(layer, rows, kernels)[0])

    rows = jax.ShapeDtypeStruct((8, 1, 64), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower(kernels, rows).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * 4 * kernels.size
