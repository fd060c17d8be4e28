"""How the processes of one run find each other, wait for each other and part. Nothing else asks where a process runs.

One process a machine runs the same command. Who tells each its place, see `launchers`; on a Cloud TPU, several slices
included, nothing need be set. With Pathways on Cloud there is one process that sees the devices of all machines.
"""

from __future__ import annotations

import atexit
import dataclasses
import importlib
import os
import sys
import threading

from t5x_scale.core.errors import UserError
from t5x_scale.core.last_words import LastWords
from t5x_scale.core.launchers import ADDRESS, COUNT, INDEX, Place, find_place

LOST = (
    "another process of this run has ended or cannot be reached; its own log says why. The same command on every "
    "machine resumes from the newest checkpoint"
)
# What is said when a collective, a barrier or the coordination service misses a process: the first by anyone, the
# others only by JAX's runtime, since a bucket may be unavailable too.
_SIGNS = ("gloo", "coordination service", "heartbeat", "barrier failed", LOST.lower())
_RUNTIME_SIGNS = ("unavailable:", "deadline_exceeded:")
# Long enough for processes that end with the same error to wait for each other.
_GRACE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """How long the processes of a run wait for each other, in seconds.

    Attributes:
      initialization_timeout_seconds: for all of them to start.
      heartbeat_timeout_seconds: for a sign of life, before one is held for dead and all the others end.
      shutdown_timeout_seconds: for the slowest to end, once the work is done.
      barrier_timeout_seconds: wherever one prepares something that all need.
    """

    initialization_timeout_seconds: int = 300
    heartbeat_timeout_seconds: int = 100
    shutdown_timeout_seconds: int = 300
    barrier_timeout_seconds: int = 1200

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise UserError(f"ProcessConfig.{field.name} is {value}; it must be 1 or more")


@dataclasses.dataclass(frozen=True)
class _Joined:
    config: ProcessConfig
    last_words: LastWords


_joined: _Joined | None = None


def is_joined() -> bool:
    """Whether this process is one of several."""
    return _joined is not None


def join_run(config: ProcessConfig = ProcessConfig()) -> None:
    """Joins the other processes of this run, if there are any; call it before anything touches a device.

    Calling it again does nothing.

    Raises:
      UserError: the variables do not make sense, the others cannot be reached, or devices are in use already.
    """
    global _joined
    import jax  # Not at the top: the rest of core is usable without JAX.
    from jax._src import distributed

    platforms = (jax.config.jax_platforms or "").split(",")
    if "proxy" in platforms:
        _join_pathways()
        return
    place = find_place(os.environ, on_tpu=platforms[0] == "tpu")
    if place is None or jax.distributed.is_initialized():
        return
    late = f"not all of them started within {config.initialization_timeout_seconds} s"
    words = LastWords(f"t5x_scale: error: {_cannot_join(late)}")
    try:
        jax.distributed.initialize(**_arguments(place, config))
    except Exception as error:
        words.cancel()
        # Whatever the network throws: name resolution, a port in use, a deadline, ….
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(_cannot_join(reason)) from error
    # Not `jax.process_count`, which starts the devices.
    state = distributed.global_state
    if state.num_processes == 1:
        words.cancel()
        return
    name = f"process {state.process_id} of {state.num_processes}"
    words.change(f"t5x_scale: error: {name} was ended by force: it was killed, or {LOST}")
    _joined = _Joined(config, words)
    # Before JAX's own, so that what goes wrong in parting is covered too.
    atexit.register(_part)


def wait_for_all(name: str) -> None:
    """Waits until every process of the run is here.

    Raises:
      UserError: not all of them came within `ProcessConfig.barrier_timeout_seconds`.
    """
    from jax._src import distributed  # The public barrier is a collective of devices, which waits for ever.

    if distributed.global_state.num_processes == 1:
        return
    seconds = (_joined.config if _joined else ProcessConfig()).barrier_timeout_seconds
    try:
        distributed.global_state.client.wait_at_barrier(f"t5x_scale: {name}", timeout_in_ms=1000 * seconds)
    except Exception as error:
        raise UserError(f"waited up to {seconds} s for the others at '{name}': {LOST}") from error


def has_lost_others(error: BaseException | None) -> bool:
    """Whether an error comes of another process that is gone."""
    if not is_joined():
        return False
    import jax

    while error is not None:
        signs = _SIGNS + (_RUNTIME_SIGNS if isinstance(error, jax.errors.JaxRuntimeError) else ())
        if any(sign in str(error).lower() for sign in signs):
            return True
        error = error.__cause__ or error.__context__
    return False


def leave_run(code: int, waiting: bool = True) -> int:
    """Ends one process of several after an error, in a bounded time; returns `code` to a process on its own.

    Left to itself it would wait for the others at the end, who wait for it in the middle of a step.

    Args:
      code: the exit code.
      waiting: whether to wait a little for the others, who may be ending with the same error.
    """
    if _joined is None:
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    _joined.last_words.cancel()
    if waiting:
        import jax

        parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        parting.start()
        parting.join(_GRACE_SECONDS)
    os._exit(code)


def _arguments(place: Place, config: ProcessConfig) -> dict[str, object]:
    """For `jax.distributed.initialize`."""
    arguments: dict[str, object] = {
        "initialization_timeout": config.initialization_timeout_seconds,
        "heartbeat_timeout_seconds": config.heartbeat_timeout_seconds,
        "shutdown_timeout_seconds": config.shutdown_timeout_seconds,
    }
    if place.address is not None:
        arguments |= {
            "coordinator_address": place.address,
            "num_processes": place.count,
            "process_id": place.index,
            "local_device_ids": None if place.devices is None else list(place.devices),
            "cluster_detection_method": "deactivate",
        }
    return arguments


def _cannot_join(reason: str) -> str:
    return (
        f"cannot join the other processes of this run ({reason}); check {ADDRESS}, {COUNT} and {INDEX}, or set "
        f"{COUNT}=1 for a process on its own"
    )


def _join_pathways() -> None:
    """Makes the machines of Pathways on Cloud this process's own devices.

    Raises:
      UserError: its package or its address is missing.
    """
    if not os.environ.get("JAX_BACKEND_TARGET"):
        raise UserError("JAX_PLATFORMS asks for Pathways (proxy), and JAX_BACKEND_TARGET does not say where it is")
    try:
        importlib.import_module("pathwaysutils").initialize()
    except ModuleNotFoundError as error:
        if error.name != "pathwaysutils":
            raise
        raise UserError(
            "JAX_PLATFORMS asks for Pathways (proxy), whose package is missing: pip install 't5x_scale[pathways]'"
        ) from error


def _part() -> None:
    global _joined
    joined, _joined = _joined, None
    if joined is not None:
        import jax

        jax.distributed.shutdown()
        joined.last_words.cancel()
