"""What the environment says about the other processes of a run: whoever started this one told it in variables.

| who starts the processes | what tells them their place |
|---|---|
| Cloud TPU, several slices and Kubernetes included | JAX asks the machine's metadata; the variables are only checked |
| Slurm (`srun`) | SLURM_PROCID, SLURM_NTASKS, and the first host of SLURM_STEP_NODELIST |
| Open MPI (`mpirun`) | OMPI_COMM_WORLD_RANK and _SIZE, and mpirun's own address, where it gives one |
| anything else | JAX_PROCESS_ID, JAX_NUM_PROCESSES, JAX_COORDINATOR_ADDRESS, or the flags that set them |

The last line may complete the ones before it, and contradict none.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from t5x_scale.core.errors import UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
PORT = "JAX_COORDINATOR_PORT"
SLICES, SLICE, SLICE_ADDRESS = "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS"
WORKER, WORKERS = "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"
# The last 4096 ports, as JAX has it: jobs that share a machine hardly ever meet.
_FIRST_PORT, _PORTS = 61440, 4096

Environment = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands in its run. All is None where JAX finds it out by itself (Cloud TPU).

    Attributes:
      address: host:port of process 0.
      count: the number of processes.
      index: 0 ... count - 1.
      devices: the devices of this machine that belong to this process; None for all of them.
    """

    address: str | None = None
    count: int | None = None
    index: int | None = None
    devices: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Launcher:
    """How one starter of processes tells them their place.

    Attributes:
      count, index: its variables; a process without both was not started by it.
      local: the index among the processes of the same machine.
      is_shared: whether several processes were started on a machine; each has one of its devices then.
      find_address: host:port of process 0, or None where it does not say.
    """

    count: str
    index: str
    local: str
    is_shared: Callable[[Environment], bool]
    find_address: Callable[[Environment], str | None]

    def has_started(self, environment: Environment) -> bool:
        """Whether this process was started by it, as one of several."""
        return bool(environment.get(self.index)) and environment.get(self.count, "1") != "1"


def find_place(environment: Environment, on_tpu: bool = False) -> Place | None:
    """The place of this process, or None for a process on its own.

    Args:
      environment: such as `os.environ`.
      on_tpu: whether JAX chose Cloud TPU devices.

    Raises:
      UserError: a variable is missing, makes no sense, or contradicts another.
    """
    given = {name: environment[name] for name in (ADDRESS, COUNT, INDEX) if environment.get(name)}
    if given.get(COUNT) == "1":
        return None
    launcher = next((known for known in LAUNCHERS if known.has_started(environment)), None)
    if launcher is not None:
        return _complete(given, _place_of(launcher, environment), launcher)
    if given:
        place = _complete(given, Place())
        _check_slices(environment, place.count)
        return place
    # JAX sets the last variable where there are no chips, users where there is no metadata server.
    if not on_tpu or environment.get("TPU_SKIP_MDS_QUERY"):
        return None
    _check_slices(environment)
    _check_worker(environment)
    return Place()


def _place_of(launcher: Launcher, environment: Environment) -> Place:
    devices = None
    # A launcher that lets each process see its own device only has divided them already.
    if launcher.is_shared(environment) and len(environment.get("CUDA_VISIBLE_DEVICES", ",").split(",")) > 1:
        devices = (_whole(launcher.local, environment.get(launcher.local, "")),)
    count = _whole(launcher.count, environment[launcher.count])
    index = _whole(launcher.index, environment[launcher.index])
    return Place(launcher.find_address(environment), count, index, devices)


def _complete(given: Mapping[str, str], place: Place, launcher: Launcher | None = None) -> Place:
    """The place with what was `given` in JAX's own variables, which may add to what a launcher says."""
    stated = {ADDRESS: given.get(ADDRESS)} | {
        name: _whole(name, given[name]) if name in given else None for name in (COUNT, INDEX)
    }
    found = {ADDRESS: place.address, COUNT: place.count, INDEX: place.index}
    for name, variable in ((COUNT, launcher.count), (INDEX, launcher.index)) if launcher else ():
        if stated[name] not in (None, found[name]):
            raise UserError(f"{name} is {stated[name]} and {variable} is {found[name]}; unset one of them")
    whole = {name: found[name] if stated[name] is None else stated[name] for name in found}
    missing = [name for name, value in whole.items() if value is None]
    if missing:
        those = ", ".join(given) or f"{launcher.count} and {launcher.index}"
        verb = "are" if " and " in those or "," in those else "is"
        raise UserError(f"{those} {verb} set, and so must be {' and '.join(missing)}")
    index, count = whole[INDEX], whole[COUNT]
    if not 0 <= index < count:
        raise UserError(f"{INDEX} is {index}; with {COUNT}={count} it must be from 0 to {count - 1}")
    if not re.fullmatch(r".+:\d+", whole[ADDRESS]):
        raise UserError(f"{ADDRESS} is '{whole[ADDRESS]}'; it must be host:port, such as 10.0.0.1:1234")
    return Place(whole[ADDRESS], count, index, place.devices)


def _check_slices(environment: Environment, count: int | None = None) -> None:
    """What several slices say of themselves. JAX would take what is missing for slice 0 of 1."""
    slices = _whole(SLICES, environment.get(SLICES) or "1")
    if slices == 1:
        return
    missing = [name for name in (SLICE, SLICE_ADDRESS) if not environment.get(name)]
    if missing:
        raise UserError(f"{SLICES} is set, and so must be {' and '.join(missing)}")
    if (index := _whole(SLICE, environment[SLICE])) >= slices:
        raise UserError(f"{SLICE} is {index}; with {SLICES}={slices} it must be from 0 to {slices - 1}")
    if count is not None and count % slices:
        raise UserError(f"{COUNT} is {count}, which does not divide over {SLICES}={slices}")


def _check_worker(environment: Environment) -> None:
    """What Kubernetes says of the workers of a slice."""
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get(WORKERS)
    if not hosts:
        return
    if not environment.get(WORKER):
        raise UserError(f"{WORKERS} is set, and so must be {WORKER}")
    index, count = _whole(WORKER, environment[WORKER]), len(hosts.split(","))
    if index >= count:
        raise UserError(f"{WORKER} is {index}; with the {count} hosts of {WORKERS} it must be from 0 to {count - 1}")


def _find_slurm_address(environment: Environment) -> str | None:
    """The first host of `SLURM_STEP_NODELIST` and a port that the job's number decides.

    Lists are `node001`, `node001,host2`, `node[001-015],host2`, `node[001,007-015]-ib,host2`.
    """
    found = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", environment.get("SLURM_STEP_NODELIST", ""))
    if found is None:
        return None
    job = _whole("SLURM_JOB_ID", environment.get("SLURM_JOB_ID", ""))
    return f"{''.join(part or '' for part in found.groups())}:{_port(environment, job)}"


def _find_open_mpi_address(environment: Environment) -> str | None:
    """mpirun's own machine, where process 0 runs too. From Open MPI 5 on the variable is not there any more.

    It is `1531576320.0;tcp://10.96.0.1,10.148.0.1:34911` or `1314521088.0;tcp6://[fe80::b9b:ac5d]:43370`.
    """
    found = re.match(r"(\d+)\.\d+;tcp6?://(?:\[([^\],]+)|([^\[:,]+))", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    if found is None:
        return None
    job, six, four = found.groups()
    # Jobs are numbered in steps of 4096.
    return f"{f'[{six}]' if six else four}:{_port(environment, int(job) // 4096)}"


def _port(environment: Environment, job: int) -> str:
    return environment.get(PORT) or str(_FIRST_PORT + job % _PORTS)


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{name} is '{text}'; it must be a whole number")
    return int(text)


def _more(environment: Environment, name: str, than: str) -> bool:
    return int(environment.get(name) or 1) > int(environment.get(than) or 1)


LAUNCHERS = (
    Launcher(
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        is_shared=lambda environment: int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") or 1) > 1,
        find_address=_find_open_mpi_address,
    ),
    Launcher(
        "SLURM_NTASKS",
        "SLURM_PROCID",
        "SLURM_LOCALID",
        is_shared=lambda environment: _more(environment, "SLURM_NTASKS", than="SLURM_STEP_NUM_NODES"),
        find_address=_find_slurm_address,
    ),
)
