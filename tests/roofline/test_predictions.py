"""The whole way, from a program compiled here on eight simulated devices to a report: counts known by construction."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_scale.roofline import CHIPS, Constants, Machine, ModelFlops, analyse, make_machine, to_json, to_text

LAYERS, WIDTH, BATCH = 3, 64, 16
MEMORY = types.SimpleNamespace(
    argument_size_in_bytes=3000,
    output_size_in_bytes=2000,
    alias_size_in_bytes=1500,
    temp_size_in_bytes=400,
    generated_code_size_in_bytes=7,
)


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@pytest.fixture(scope="module")
def machine(mesh):
    return make_machine(mesh, chip=CHIPS["v5p"])


@pytest.fixture(scope="module")
def text(mesh):
    """Layers of two products, split as Megatron's: one sum over `model` a layer, one over everything at the end."""

    def layer(x, weights):
        first, second = weights
        return jax.lax.psum(jnp.tanh(x @ first) @ second, "model"), None

    def program(x, first, second):
        x, _ = jax.lax.scan(layer, x, (first, second))
        return jax.lax.psum(x.sum(), ("data", "model"))

    specs = (
        PartitionSpec("data", None),
        PartitionSpec(None, None, "model"),
        PartitionSpec(None, "model", None),
    )
    mapped = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    shapes = ((BATCH, WIDTH), (LAYERS, WIDTH, 4 * WIDTH), (LAYERS, 4 * WIDTH, WIDTH))
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    return jax.jit(mapped).lower(*arguments).compile().as_text()


@pytest.fixture(scope="module")
def report(text, machine):
    return analyse(text, machine, MEMORY, ModelFlops(tokens=BATCH, full=8e9, causal=4e9))


def test_collectives_run_as_often_as_written(report):
    rows = {row.axes: row for row in report.collectives if row.kind == "all-reduce"}
    assert rows["model",].count == LAYERS
    assert rows["model",].payload == LAYERS * (BATCH // 2) * WIDTH * 4
    assert rows["model",].size == 4
    assert rows["data", "model"].count == 1
    assert rows["data", "model"].size == 8


def test_products_count_with_the_turns_of_the_loop(report):
    assert report.flops == LAYERS * 2 * 2 * (BATCH // 2) * WIDTH * WIDTH


def test_utilisation_is_what_the_model_needs_over_what_the_machine_could(report):
    peak = 8 * CHIPS["v5p"].peak_flops * report.seconds
    assert report.mfu == pytest.approx(8e9 / peak)
    assert report.mfu_causal == pytest.approx(4e9 / peak)
    assert report.hfu == pytest.approx(8 * report.flops / peak)
    assert report.tokens_per_second == pytest.approx(BATCH / report.seconds)


def test_parts_of_the_step_add_up(report):
    assert report.seconds == pytest.approx(sum(report.busy.values()) + report.exposed + report.host_exposed)
    assert report.exposed == pytest.approx(sum(row.exposed for row in report.collectives))


def test_memory_is_what_the_compiler_says(report):
    assert (report.memory.state, report.memory.results, report.memory.total) == (3000, 500, 3907)


def test_without_the_models_needs_there_is_no_utilisation(text, machine):
    report = analyse(text, machine)
    assert report.mfu is None
    assert report.memory is None
    assert "MFU" not in to_text(report)


def test_the_text_has_the_figures_and_the_json_all_of_them(report):
    lines = to_text(report)
    assert "Predicted step on 8 x v5p, data=2 x model=4" in lines
    assert "all-reduce" in lines
    assert "assumed for" not in lines
    values = json.loads(json.dumps(to_json(report)))
    assert values["seconds"] == report.seconds
    assert values["collectives"][0]["kind"] == report.collectives[0].kind


def test_the_report_says_what_is_assumed_of_a_chip(text, machine):
    chip = dataclasses.replace(machine.chip, assumed=("dcn_bandwidth",))
    lines = to_text(analyse(text, dataclasses.replace(machine, chip=chip)))
    assert "assumed for v5p, no page gives it: dcn_bandwidth" in lines


def test_text_that_is_no_program_is_refused(machine):
    with pytest.raises(ValueError, match="no entry"):
        analyse("HloModule nothing", machine)


# What the TPU compiler makes of bf16[4096, 16384] @ bf16[16384, 4096] on a v5p, shortened.
TPU_PRODUCT = """HloModule jit_f, is_scheduled=true

%fused_computation (param_0: bf16[4096,16384], param_1: bf16[16384,4096]) -> bf16[4096,4096] {
  %param_0 = bf16[4096,16384]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[16384,4096]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[4096,4096]{1,0:T(8,128)(2,1)} convolution(%param_0, %param_1), dim_labels=bf_io->bf
}

ENTRY %main.1 (a.1: bf16[4096,16384], b.1: bf16[16384,4096]) -> bf16[4096,4096] {
  %b.1 = bf16[16384,4096]{1,0:T(8,128)(2,1)} parameter(1), sharding={replicated}, metadata={op_name="b"}
  %a.1 = bf16[4096,16384]{1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}, metadata={op_name="a"}
  ROOT %fusion = bf16[4096,4096]{1,0:T(8,128)(2,1)} fusion(%a.1, %b.1), kind=kOutput, calls=%fused_computation, \
backend_config={"flag_configs":[],"window_config":{"kernel_window_bounds":["128","8"],"estimated_cycles":"2253584",\
"iteration_bounds":["4","6","16"]},"megacore_config":{"megacore_split_dim":"1"}}
}
""".replace("\\\n", "")


def test_a_product_of_the_tpu_compiler():
    alone = Machine(CHIPS["v5p"], ("fsdp",), (1,), np.zeros((1, 3), int), np.zeros(1, int), (1, 1, 1))
    report = analyse(TPU_PRODUCT, alone, constants=Constants(product_efficiency=1.0, vector_stretch=1.0))
    assert report.flops == 2 * 4096 * 16384 * 4096
    # At the clock that the peak implies the compiler's estimate is 93 % of the peak.
    assert report.slowest[0].efficiency == pytest.approx(0.93, abs=0.01)
    assert report.bound.startswith("the matrix unit")
    assert report.copied == ()
    # Products were measured to be a little faster than estimated.
    assert report.slowest[0].efficiency < analyse(TPU_PRODUCT, alone).slowest[0].efficiency <= 1.0
