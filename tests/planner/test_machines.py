"""Machines by name, their meshes, and an estimate of memory that stands up to a compiler's."""

import json
import pathlib
import re

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.laws import LAWS
from t5x_scale.models.config import ModelConfig
from t5x_scale.partitioning.topologies import GENERATIONS, count_devices
from t5x_scale.planner.budgets import make_budget
from t5x_scale.planner.gin_files import SHIPPED, run_text
from t5x_scale.planner.machines import given, load_precompiled
from t5x_scale.planner.memory import choose_micro_batches, estimate_memory
from t5x_scale.planner.meshes import MeshPlan, choose_mesh
from t5x_scale.planner.plans import make_plan
from t5x_scale.planner.shapes import Shape
from t5x_scale.planner.slices import candidates, parse_slice, slice_sizes

HARDWARE = pathlib.Path(__file__).parents[2] / "gin" / "hardware"
LLAMA_7B = Shape("llama", ModelConfig(32, 4096, 11008, 32, 32, 128, 32000))


@pytest.mark.parametrize(
    ("text", "chips", "slices", "topology"),
    [
        ("v5p-512", 512, 1, "v5p:8x8x8"),
        ("v5p_64", 64, 1, "v5p:4x4x4"),
        ("v4_2x3072", 3072, 2, "v4:12x16x16"),
        ("v5p:8x8x16", 1024, 1, "v5p:8x8x16"),
        ("V6E-256", 256, 1, "v6e:16x16"),
        ("512", 512, 1, "v5p:8x8x8"),
        ("h200-8", 8, 1, None),
        ("cpu", 1, 1, None),
    ],
)
def test_names(text, chips, slices, topology):
    machine = parse_slice(text)
    assert (machine.chips, machine.slices, machine.topology) == (chips, slices, topology)


def test_a_generation_alone_is_any_number_of_chips():
    assert parse_slice("v5e") == "v5e"


@pytest.mark.parametrize("text", ["", "v5p-0", "v5p-3", "v5p-1x", "x-y", "v5p:8", "v5p-1e3", "0"])
def test_what_is_no_machine(text):
    with pytest.raises(UserError, match="--chips"):
        parse_slice(text)


@pytest.mark.parametrize("generation", ["v4", "v5p", "v5e", "v6e", "tpu7x", "h100", "cpu"])
def test_candidates_grow(generation):
    chips = [machine.total_chips for machine in candidates(generation)]
    assert chips == sorted(set(chips))


def test_published_slices_are_known():
    assert {64, 128, 512, 2048, 3072, 4096} <= set(slice_sizes("v4"))
    assert set(slice_sizes("v5e")) == {1, 4, 8, 16, 32, 64, 128, 256}


def test_shipped_machines_are_those_of_gin_hardware():
    """What a plan includes instead of writing it, has the mesh that the plan thinks."""
    for name, sizes in SHIPPED.items():
        text = (HARDWARE / f"{name}.gin").read_text()
        found = [int((re.search(rf"\b{axis} = (\d+)", text) or [0, 1])[1]) for axis in ("fsdp", "model", "dcn_data")]
        assert tuple(found) == sizes, name
        machine = parse_slice(name)
        topology = re.search(r'TOPOLOGY = "(.*)"', text)
        assert machine.topology == (topology[1] if topology else None)


@pytest.mark.parametrize("generation", ["v4", "v5p", "v5e", "v6e", "tpu7x"])
def test_slices_are_topologies(generation):
    """Down to the hosts of one chip, what a plan writes can be compiled for."""
    for size in slice_sizes(generation):
        machine = parse_slice(f"{generation}-{size}")
        assert count_devices(machine.topology) == size * GENERATIONS[generation].devices_per_chip


@pytest.mark.parametrize(("chips", "named"), [("v5p-32", True), ("h100-8", False)])
def test_a_machine_without_a_file_is_written(chips, named):
    """Its kernels are those of its platform, wherever a dry run traces the step."""
    plan = make_plan(make_budget(flops=1e20, chips=chips), LAWS)
    text = run_text(plan, "a run", ".")
    assert ('platform = "tpu"' in text) == named
    assert ('TOPOLOGY = "v5p:' in text) == named


def test_meshes_of_published_runs():
    """PaLM 540B split its layers in twelve; six are the least that leave a power of two."""
    assert choose_mesh(parse_slice("v4_2x3072"), 1024, 4.5e9, 18432) in (MeshPlan(512, 6, 2), MeshPlan(256, 12, 2))
    assert choose_mesh(parse_slice("v4_2x3072"), 512, 4.5e9, 18432) == MeshPlan(256, 12, 2)
    assert choose_mesh(parse_slice("v5p-64"), 256, 2e8, 4096) == MeshPlan(64)
    # Fewer rows than devices: several devices to a row.
    assert choose_mesh(parse_slice("v5p-64"), 20, 2e8, 4096) == MeshPlan(16, 4)


def test_memory_of_llama_2_7b():
    """MaxText's step for 64 v5p at 4 x 4096 tokens a chip, compiled: 1.26 GB of state, 14.02 GB of temporaries, logits
    whole. Ours are cut into chunks: 6.3 GB less of three copies in float32."""
    memory = estimate_memory(LLAMA_7B, MeshPlan(64), 256, 4096, 95 * 2**30)
    assert memory.state == pytest.approx(1.26e9, rel=0.01)
    assert 14.02e9 - 6.3e9 < memory.total - memory.state < 14.02e9
    assert memory.saved == 16384 * 4096 * 2 * 32


def test_memory_of_a_step_of_ours():
    """7.0B parameters on 64 v5p, three micro-batches of 384 x 4096, compiled: 13.60 GiB at once, of which state
    1.22 and saved activations 6.19."""
    shape = Shape("llama", ModelConfig(32, 4096, 11136, 32, 32, 128, 58496))
    assert shape.count.total == 7_005_802_496
    memory = estimate_memory(shape, MeshPlan(64), 1152 // 3, 4096, 95 * 2**30)
    assert memory.state / 2**30 == pytest.approx(1.224, abs=0.002)
    assert memory.saved / 2**30 == pytest.approx(6.19, rel=0.05)
    assert memory.total / 2**30 == pytest.approx(13.60, rel=0.05)


def test_micro_batches_until_it_fits():
    parts, memory = choose_micro_batches(LLAMA_7B, MeshPlan(64), 64 * 32, 4096, 20e9)
    assert memory.fits
    assert parts > 1
    whole = estimate_memory(LLAMA_7B, MeshPlan(64), 64 * 32, 4096, 20e9)
    assert not whole.fits
    _, hopeless = choose_micro_batches(LLAMA_7B, MeshPlan(64), 64, 4096, 1e9)
    assert not hopeless.fits


def test_the_compilers_prediction_is_taken(tmp_path):
    record = {
        "topology": "v5p:4x4x4",
        "steps": [{"parameters": 8, "prediction": {"mfu": 0.61, "num_chips": 64, "chip": "v5p"}}],
    }
    path = tmp_path / "step.json"
    path.write_text(json.dumps(record))
    found = load_precompiled(str(path))
    assert (found.mfu, found.machine.total_chips) == (0.61, 64)
    plan = make_plan(make_budget(params=7e9, tokens=1e11, chips="v5p-64", mfu=0.61, mfu_source="the compiler"), LAWS)
    assert plan.cost.days * 86400 == pytest.approx(plan.cost.flops / (64 * 459e12 * 0.61))
    assert plan.cost.mfu_source == "the compiler"
    assert given(None, None, str(path))["chips"] == "v5p_64"
    assert given("v4-64", None, str(path))["chips"] == "v4-64"
    with pytest.raises(UserError, match="leave one of them out"):
        given(None, 0.5, str(path))


@pytest.mark.parametrize("text", ["{}", "[]", '{"steps": [{"prediction": null}]}', "no json"])
def test_a_report_without_a_prediction(tmp_path, text):
    (tmp_path / "step.json").write_text(text)
    with pytest.raises(UserError, match="--precompiled"):
        load_precompiled(str(tmp_path / "step.json"))


def test_a_machine_that_is_too_small_is_said():
    plan = make_plan(make_budget(params=70e9, tokens=1e12, chips="v5e-16"), LAWS)
    assert any("does not fit" in line for line in plan.warnings)
