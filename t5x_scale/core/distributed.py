"""How the processes of one run find each other. Nothing else in the project asks where a process runs.

One process a machine runs the same command, and each is told its place:

    JAX_COORDINATOR_ADDRESS   host:port of process 0, which every process can reach
    JAX_NUM_PROCESSES         how many there are; 1 is a process on its own, wherever it runs
    JAX_PROCESS_ID            0 ... n - 1 (under Slurm: JAX_PROCESS_ID=$SLURM_PROCID)

On a Cloud TPU, pods and multislices included, nothing need be set: JAX asks the machine's own metadata.
"""

from __future__ import annotations

import os

from t5x_scale.core.errors import UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join_run() -> None:
    """Joins the other processes of this run, if there are any; call it before anything touches a device.

    Calling it again does nothing.

    Raises:
      UserError: the variables do not make sense, the others cannot be reached, or devices are in use already.
    """
    import jax  # Not at the top: the rest of core is usable without JAX.

    arguments = read_environment(on_tpu=(jax.config.jax_platforms or "").startswith("tpu"))
    if arguments is None or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(**arguments)
    except Exception as error:
        # Whatever the network throws: name resolution, a port in use, a deadline, ….
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot join the other processes of this run ({reason}); check {ADDRESS}, {COUNT} and {INDEX}, or set "
            f"{COUNT}=1 for a process on its own"
        ) from error


def read_environment(on_tpu: bool) -> dict[str, object] | None:
    """The arguments for `jax.distributed.initialize`, or None for a process on its own.

    Args:
      on_tpu: whether JAX chose Cloud TPU devices.

    Raises:
      UserError: a variable is missing or is not a number in its range.
    """
    given = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)}
    if given.get(COUNT) == "1":
        return None
    if not given:
        # JAX sets the variable where there are no chips, users where there is no metadata server.
        return {} if on_tpu and not os.environ.get("TPU_SKIP_MDS_QUERY") else None
    missing = [name for name in (ADDRESS, COUNT, INDEX) if name not in given]
    if missing:
        raise UserError(f"{', '.join(given)} is set, and so must be {' and '.join(missing)}")
    count, index = _whole(COUNT, given[COUNT]), _whole(INDEX, given[INDEX])
    if not 0 <= index < count:
        raise UserError(f"{INDEX} is {index}; with {COUNT}={count} it must be from 0 to {count - 1}")
    return {"coordinator_address": given[ADDRESS], "num_processes": count, "process_id": index}


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{name} is '{text}'; it must be a whole number")
    return int(text)
