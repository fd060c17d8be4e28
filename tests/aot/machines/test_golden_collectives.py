"""What a training step exchanges on every TPU machine that is shipped, as the TPU compiler has it.

Two layers of the machine's model stand for all: their collectives are in the loop over layers, and the number of its
turns is part of their count.
"""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "fakes"))

from golden_files import GOLDEN, MODELS, REWRITES, check_golden, collectives_text, files_of, load_run, mesh_text

from t5x_scale.partitioning.topologies import topology_devices

LAYERS = 2
# Name -> machine and the sizes of its mesh that differ from its file.
CASES = {name: (name, {}) for name in MODELS if name.startswith(("v", "tpu"))}
CASES["v5p_64_experts"] = ("v5p_64", {"fsdp": 8, "expert": 8})
CASES["v5p_64_model"] = ("v5p_64", {"fsdp": 16, "model": 4})
# Each takes minutes to compile. Compared are those of which a text is kept; writing anew makes all.
KEPT = [name for name in CASES if REWRITES or (GOLDEN / "collectives" / f"{name}.txt").exists()]


@pytest.mark.parametrize("name", KEPT)
def test_collectives_of_a_step(name):
    hardware, sizes = CASES[name]
    files = files_of(hardware)
    settings = {f"MeshConfig__{axis}": size for axis, size in sizes.items()}
    made = load_run(*files, ModelConfig__num_layers=LAYERS, MICRO_BATCHES=1, REMAT="full", **settings)
    program, data = made["program"], made["data"]
    devices = topology_devices(made["topology"], program.mesh.dcn_data * program.mesh.dcn_stage)
    runtime = program.make(devices)
    # A row for all devices that share one.
    rows = runtime.mesh.size // runtime.mesh.shape["model"]
    compiled = runtime.compile_step(rows, data.sequence_length, 1, data.field_names)
    title = (
        f"{files[0]} with {LAYERS} layers on {made['topology']}, {mesh_text(runtime.mesh)}, "
        f"{rows} x {data.sequence_length} tokens"
    )
    found = collectives_text(compiled.as_text(), runtime.mesh)
    check_golden(f"collectives/{name}.txt", f"{title}\n\n{found}")
