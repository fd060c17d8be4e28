"""Where every parameter lies on every machine that is shipped, and what steps on simulated devices exchange."""

import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from gin_files import names
from golden_files import GOLDEN, MODELS, check_golden, collectives_text, files_of, load_run, mesh_text, sharding_text

from t5x_scale.program import Runtime

HARDWARE = [pathlib.Path(name).stem for name in names("hardware")]

# Name -> model, sharding file, sizes of the mesh: every rule table on eight simulated devices.
LAYOUTS = {
    "data_parallel": ("palm/tiny", "data_parallel", {"data": 8, "fsdp": 1, "model": 1}),
    "fsdp": ("llama/tiny", "fsdp", {"data": 1, "fsdp": 8, "model": 1}),
    "fsdp_model": ("palm/tiny", "fsdp_model", {"data": 2, "fsdp": 2, "model": 2}),
    "fsdp_model_llama": ("llama/tiny", "fsdp_model", {"data": 1, "fsdp": 4, "model": 2}),
    "fsdp_model_biases": ("pythia/14m", "fsdp_model", {"data": 1, "fsdp": 4, "model": 2}),
    "fsdp_model_vocab_fsdp": ("palm/tiny", "fsdp_model_vocab_fsdp", {"data": 1, "fsdp": 4, "model": 2}),
    "sequence": ("llama/tiny", "sequence", {"data": 1, "fsdp": 4, "model": 2}),
    "context": ("llama/tiny", "context", {"data": 1, "fsdp": 2, "context": 2, "model": 2}),
    "expert": ("mixtral/tiny", "expert", {"data": 1, "fsdp": 2, "expert": 2, "model": 2}),
    "fsdp_model_experts": ("mixtral/tiny", "fsdp_model", {"data": 1, "fsdp": 2, "expert": 2, "model": 2}),
}


def test_every_machine_has_its_model():
    assert sorted(MODELS) == sorted(HARDWARE)


def test_every_tpu_has_a_text_of_its_collectives():
    """Which tests/aot/machines holds it to; for CPUs there are the simulated ones, and one GPU exchanges nothing."""
    tpus = {name for name in HARDWARE if name.startswith(("v", "tpu"))}
    assert tpus <= {path.stem for path in (GOLDEN / "collectives").glob("*.txt")}


@pytest.mark.parametrize("hardware", HARDWARE)
def test_parameters_on_shipped_machines(hardware):
    model, machine = files_of(hardware)
    program = load_run(model, machine)["program"]
    runtime = Runtime(program, program.mesh.make_abstract_mesh())
    check_golden(f"shardings/{hardware}.txt", f"{model} on {mesh_text(runtime.mesh)}\n\n{sharding_text(runtime)}")


@pytest.mark.parametrize("name", LAYOUTS)
def test_collectives_of_a_step_on_simulated_devices(name):
    model, table, sizes = LAYOUTS[name]
    settings = {f"MeshConfig__{axis}": size for axis, size in sizes.items()}
    files = (f"gin/models/{model}.gin", "gin/hardware/cpu_8.gin", f"gin/sharding/{table}.gin")
    made = load_run(*files, BATCH_SIZE=16, TASK_FEATURE_LENGTHS={"targets": 64}, MICRO_BATCHES=1, **settings)
    runtime = made["program"].make(jax.devices())
    compiled = runtime.compile_step(16, 64, 1, made["data"].field_names)
    title = f"{files[0]}, {files[2]}, 16 x 64 tokens on {mesh_text(runtime.mesh)}"
    check_golden(
        f"collectives/simulated_{name}.txt", f"{title}\n\n{collectives_text(compiled.as_text(), runtime.mesh)}"
    )
