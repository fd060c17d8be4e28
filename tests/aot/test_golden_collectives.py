"""What a training step exchanges on every TPU machine that is shipped, as the TPU compiler has it.

Two layers of the machine's model stand for all: their collectives are in the loop over layers, and the number of its
turns is part of their count.
"""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from golden_files import MODELS, check_golden, collectives_text, files_of, load_run, mesh_text

from t5x_scale.partitioning.topologies import topology_devices

LAYERS = 2
MACHINES = [name for name in MODELS if name.startswith(("v", "tpu"))]


@pytest.mark.parametrize("hardware", MACHINES)
def test_collectives_of_a_step(hardware):
    files = files_of(hardware)
    made = load_run(*files, ModelConfig__num_layers=LAYERS, MICRO_BATCHES=1, REMAT="full")
    program, data = made["program"], made["data"]
    devices = topology_devices(made["topology"], program.mesh.dcn_data * program.mesh.dcn_stage)
    runtime = program.make(devices)
    rows = runtime.batch_sharding.num_devices // runtime.mesh.shape["model"]
    compiled = runtime.compile_step(rows, data.sequence_length, 1, data.field_names)
    title = (
        f"{files[0]} with {LAYERS} layers on {made['topology']}, {mesh_text(runtime.mesh)}, "
        f"{rows} x {data.sequence_length} tokens"
    )
    found = collectives_text(compiled.as_text(), runtime.mesh)
    check_golden(f"collectives/{hardware}.txt", f"{title}\n\n{found}")
