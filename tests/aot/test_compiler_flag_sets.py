"""Each generation's compiler knows every option of its set, and they do what they are there for."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_scale.partitioning.compiler_flags import CompilerFlags
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.topologies import topology_devices

WIDTH = 2048


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_the_compiler_knows_every_option(topology):
    device = topology_devices(topology)[0]
    options = CompilerFlags().options(device.device_kind)
    assert options
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))
    jax.jit(lambda x: 2 * x, compiler_options=options).lower(x).compile()


def test_weights_are_gathered_beside_products_on_a_torus():
    """Without the options the compiler of v5p:4x4x4 sums over all devices what fsdp asks it to gather."""
    mesh = MeshConfig(fsdp=64).make_mesh(topology_devices("v5p:4x4x4"))

    def array(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec)))

    def layer(x, w):
        w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
        return jnp.tanh(x @ w), None

    def collectives(options):
        step = jax.jit(lambda x, w: jax.lax.scan(layer, x, w)[0], compiler_options=options)
        text = step.lower(array((128, 2048, WIDTH), "fsdp"), array((4, WIDTH, WIDTH), None, "fsdp")).compile().as_text()
        return set(re.findall(r" (all-gather|all-reduce)(?:-start)?\(", text))

    assert collectives(None) == {"all-reduce"}
    assert collectives(CompilerFlags().options("TPU v5")) == {"all-gather"}
