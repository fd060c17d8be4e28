"""`t5x_scale precompile`: the training step through the compiler of a machine that is not here. Does it fit?

With `--dry_run` nothing is compiled: shapes, divisibility and bytes of state, in seconds, for any machine.
"""

from __future__ import annotations

import time
from typing import Any

from t5x_scale import run_files
from t5x_scale.data.pipeline import DataConfig
from t5x_scale.partitioning.topologies import topology_devices
from t5x_scale.program import Program, Runtime


def precompile(program: Program, data: DataConfig, topology: str | None = None, log_every_steps: int = 10) -> int:
    """Compiles the step of every batch size of a run and prints what it takes of a chip's memory.

    Args:
      program: model, optimiser and placement, as for train.
      data: batch sizes and sequence length; no data is read.
      topology: `generation:shape` of one slice (`v4:4x4x4`); None compiles for the devices that are here.
      log_every_steps: rows of the step's metrics buffer, as in train.

    Returns:
      0 when everything compiled.
    """
    mesh = program.mesh
    devices = None if topology is None else topology_devices(topology, mesh.dcn_data * mesh.dcn_stage)
    runtime = program.make(devices)
    run_files.check_shapes(runtime, data)
    for size in dict.fromkeys(data.schedule.sizes()):
        started = time.monotonic()
        compiled = runtime.compile_step(size, data.sequence_length, log_every_steps, data.field_names)
        memory = compiled.memory_analysis()
        print(f"{size} x {data.sequence_length} tokens compiled in {time.monotonic() - started:.0f} s")
        print(run_files.memory_text(memory))
    return 0


def dry_run(program: Program, data: DataConfig, **_: Any) -> str:
    """The parameter table and totals, without compiling anything; what train refuses for its shapes is refused."""
    runtime = Runtime(program, program.mesh.make_abstract_mesh())
    run_files.check_shapes(runtime, data)
    return run_files.parameter_report(runtime)
