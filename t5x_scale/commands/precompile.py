"""`t5x_scale precompile`: the training step through the compiler of a machine that is not here. Does it fit?

A model and a machine are enough: the run that is assumed then is gin/runs/precompile.gin. With `--dry_run` nothing is
compiled: the step is traced for the machine, which refuses what the compiler would not even see, and the bytes of its
state are counted and compared with what a device has, in seconds.
"""

from __future__ import annotations

from typing import Any

from t5x_scale import run_files
from t5x_scale.commands.precompiling.advice import advise
from t5x_scale.commands.precompiling.attempt import attempt, describe_setting, setting_text
from t5x_scale.commands.precompiling.memory import USABLE_HBM, shard_bytes
from t5x_scale.commands.precompiling.search import Search, Target, find_fastest
from t5x_scale.core.errors import UserError
from t5x_scale.core.files import is_directory, make_directory, to_path, write_json
from t5x_scale.data.pipeline import DataConfig
from t5x_scale.partitioning.topologies import count_devices, topology_devices
from t5x_scale.program import Program, Runtime
from t5x_scale.roofline import CHIPS

# What is read first when none of the given files is a run file.
USUAL_RUN = "gin/runs/precompile.gin"
EXIT_DOES_NOT_FIT = 1


def precompile(
    program: Program,
    data: DataConfig,
    topology: str | None = None,
    log_every_steps: int = 10,
    search: bool | Search = False,
    output: str | None = None,
    assumes_usual_run: bool = False,
) -> int:
    """Compiles the step of every batch size of a run and says what it takes of a machine.

    Args:
      program: model, optimiser and placement, as for train.
      data: batch sizes and sequence length; no data is read.
      topology: `generation:shape` of one slice (`v4:4x4x4`); None compiles for the devices that are here.
      log_every_steps: rows of the step's metrics buffer, as in train.
      search: True compiles some usual choices of remat and micro-batches, a `Search` those it names, and the fastest
        that fits is named.
      output: a JSON file for the results.
      assumes_usual_run: said by the run file that is read when none is given.

    Returns:
      0 when everything compiled and fits a device, 1 when something does not.
    """
    mesh = program.mesh
    devices = None if topology is None else topology_devices(topology, mesh.dcn_data * mesh.dcn_stage)
    runtime = program.make(devices)
    run_files.check_steps(runtime, data, log_every_steps)
    if output is not None:
        _check_output(output)
    if assumes_usual_run:
        print("no run file is given; a usual run is assumed (gin/runs/precompile.gin), which flags change:")
    if topology is None:
        print("TOPOLOGY is None: compiled for the devices that are here; a file of gin/hardware/ names another machine")
    sizes = tuple(dict.fromkeys(data.schedule.sizes()))
    print(setting_text(describe_setting(runtime, data, sizes[-1])), flush=True)
    if search:
        plan = search if isinstance(search, Search) else Search()
        target = Target(devices, topology, data, sizes[-1], log_every_steps)
        attempts = find_fastest(plan, runtime, target)
        fits = any(made.fits for made in attempts)
    else:
        attempts = [attempt(runtime, data, size, log_every_steps, topology) for size in sizes]
        print("\n\n".join(made.text() for made in attempts))
        fits = all(made.fits for made in attempts)
    if output is not None:
        write_json(to_path(output), {"topology": topology, "steps": [made.to_json() for made in attempts]})
    return 0 if fits else EXIT_DOES_NOT_FIT


def dry_run(
    program: Program, data: DataConfig, topology: str | None = None, log_every_steps: int = 10, **_: Any
) -> str:
    """The parameter table and totals, without compiling anything; what is refused before compiling is refused.

    So is a mesh that does not fit the devices of the topology, which are counted by its name. Without a topology
    kernels are chosen for the platform of the mesh.
    """
    mesh = program.mesh
    if topology is None:
        abstract = mesh.make_abstract_mesh()
    else:
        abstract = mesh.make_abstract_mesh(count_devices(topology, mesh.dcn_data * mesh.dcn_stage), "tpu")
    runtime = Runtime(program, abstract)
    run_files.check_steps(runtime, data, log_every_steps)
    report = run_files.parameter_report(runtime)
    return report if topology is None else report + _lack_of_room(runtime, data, topology)


def _lack_of_room(runtime: Runtime, data: DataConfig, topology: str) -> str:
    """That the state alone is more than a device of the topology holds, and what to change; nothing where it is not."""
    state = shard_bytes(runtime.abstract_state)
    usable = USABLE_HBM[CHIPS[topology.split(":")[0]].kind]
    if state <= usable:
        return ""
    advice = advise(runtime, data.schedule.sizes()[-1], state, usable)
    lines = [f"it does not fit: a device of {topology} has {run_files.bytes_text(usable)}", "what would help:"]
    return "\n\n" + "\n".join([*lines, *(f"  {line}" for line in advice)])


def _check_output(output: str) -> None:
    """Makes the directory of the results, before the minutes whose results they are.

    Raises:
      UserError: it cannot be written, or `output` is a directory itself.
    """
    path = to_path(output)
    if is_directory(path):
        raise UserError(f"output {path} is a directory; name a file in it")
    make_directory(path.parent)
