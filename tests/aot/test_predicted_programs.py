"""What the TPU compiler writes is what the prediction reads: counts known by construction, on every generation.

A change of the compiler's text would otherwise show as a wrong number, not as an error.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.topologies import topology_devices
from t5x_scale.roofline import ModelFlops, analyse, make_machine, to_text

LAYERS, ROWS, WIDTH, INNER = 6, 4096, 2048, 8192
MACHINES = {"v4:4x4x4": 64, "v5p:4x4x4": 64, "v5e:4x4": 16, "v6e:4x4": 16, "tpu7x:2x2x2": 16}


def compile_layers(topology, devices):
    """A loop of layers of two products whose weights are gathered over fsdp, forward and backward."""
    mesh = MeshConfig(fsdp=devices).make_mesh(topology_devices(topology))

    def shape(dims, dtype, *axes):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, P(*axes)))

    def layer(x, weights):
        first, second = weights
        return x + jnp.tanh(x @ first) @ second, None

    def loss(weights, x):
        return jax.lax.scan(jax.checkpoint(layer), x, weights)[0].astype(jnp.float32).sum()

    weights = (
        shape((LAYERS, WIDTH, INNER), jnp.bfloat16, None, "fsdp"),
        shape((LAYERS, INNER, WIDTH), jnp.bfloat16, None, "fsdp"),
    )
    compiled = jax.jit(jax.grad(loss)).lower(weights, shape((ROWS * devices, WIDTH), jnp.bfloat16, "fsdp")).compile()
    return compiled, make_machine(mesh, topology)


@pytest.fixture(scope="module", params=MACHINES, ids=list(MACHINES))
def predicted(request):
    compiled, machine = compile_layers(request.param, MACHINES[request.param])
    tokens = ROWS * machine.num_devices
    needs = 6.0 * 2 * WIDTH * INNER * LAYERS * tokens
    return machine, analyse(compiled.as_text(), machine, compiled.memory_analysis(), ModelFlops(tokens, needs, needs))


def test_products_are_those_of_forward_recomputation_and_backward(predicted):
    _, report = predicted
    one = 2.0 * ROWS * WIDTH * INNER * LAYERS
    # Two forward, four backward, and one or both again.
    assert one * 7 <= report.flops <= one * 8
    assert not any("counts once" in note for note in report.notes)


def test_products_have_estimates_of_the_order_that_the_peak_allows(predicted):
    machine, report = predicted
    ideal = report.flops / machine.chip.device_peak_flops
    # These weights are small and travel in parts, so that products are narrow: up to four times the ideal.
    assert ideal <= report.busy["matmul"] <= 5 * ideal
    assert report.mfu <= report.hfu <= 1


def test_weights_travel_over_fsdp_in_every_layer(predicted):
    machine, report = predicted
    rows = [row for row in report.collectives if row.axes == ("fsdp",)]
    bytes_of_layers = 2 * WIDTH * INNER * 2 * LAYERS
    # Gathered forward and again backward, gradients summed; other collectives are small.
    assert sum(row.payload for row in rows) >= 2.5 * bytes_of_layers
    assert {row.size for row in rows if row.kind != "collective-permute"} == {machine.num_devices}
    assert all(row.seconds > 0 for row in rows)


def test_memory_adds_up_and_layers_save_their_input(predicted):
    _, report = predicted
    memory = report.memory
    assert memory.total == memory.state + memory.results + memory.temporaries + memory.program
    assert memory.stacked >= LAYERS * ROWS * WIDTH * 2
    assert "MFU" in to_text(report)
