"""What to change when a step does not fit a device: what saves memory for the least time first, as words to add."""

from __future__ import annotations

import math

from t5x_scale.core import batch as fields
from t5x_scale.models.remat import REMAT_POLICIES
from t5x_scale.partitioning.shardings import to_spec
from t5x_scale.program import Runtime


def advise(runtime: Runtime, rows: int, state_bytes: int, available: float | None) -> list[str]:
    """Lines, each with the flags that make the change.

    Args:
      runtime: what was compiled.
      rows: of the batch.
      state_bytes: of parameters and optimiser on a device.
      available: bytes that a device has, if that is known.
    """
    if available is not None and state_bytes > available:
        lines = [f"parameters and optimiser alone take {state_bytes / 2**30:.2f} GiB a device: use more devices"]
        return lines + _more_sharing(runtime)
    return [*_less_saved(runtime), *_micro_batches(runtime, rows), *_less_work_each(runtime), *_offload(runtime)]


def own_rows(runtime: Runtime, rows: int) -> int:
    """Rows of a micro-batch that each group of devices which shares rows works on at once."""
    spec = to_spec(runtime.program.rules, fields.AXES, runtime.mesh)
    entry = spec[0] if spec else None
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    shares = math.prod(runtime.mesh.shape[name] for name in names)
    return max(rows // (runtime.program.step.micro_batches * shares), 1)


def _less_saved(runtime: Runtime) -> list[str]:
    remat = runtime.program.model.module.remat
    words = list(REMAT_POLICIES)
    if remat not in words:
        return ['save less of each layer: --gin.REMAT=\\"full\\"']
    return [f'save less of each layer: --gin.REMAT=\\"{word}\\"' for word in words[words.index(remat) + 1 :]][-1:]


def _micro_batches(runtime: Runtime, rows: int) -> list[str]:
    now, own = runtime.program.step.micro_batches, own_rows(runtime, rows)
    part = next((part for part in range(2, own + 1) if own % part == 0), None)
    if part is None:
        return []
    return [f"work on fewer rows at once, {own // part} of {own}: --gin.StepConfig.micro_batches={now * part}"]


def _less_work_each(runtime: Runtime) -> list[str]:
    """Halves what a device holds of every activation, by a mesh with twice the model axis and half of fsdp."""
    config, shape = runtime.program.model.config, runtime.mesh.shape
    model = 2 * shape["model"]
    divides = config.num_heads % model == 0 and config.mlp_dim % model == 0 and config.vocab_size % model == 0
    if shape["fsdp"] % 2 or not divides or "model" not in runtime.program.rules.get("act_mlp", ()):
        return []
    flags = f"--gin.MeshConfig.fsdp={shape['fsdp'] // 2} --gin.MeshConfig.model={model}"
    return [f"let more devices share each row: {flags}"]


def _more_sharing(runtime: Runtime) -> list[str]:
    if runtime.mesh.shape["data"] <= runtime.program.mesh.dcn_data:
        return []
    return ["split the state over the devices that hold copies: --gin.MeshConfig.data=1 --gin.MeshConfig.fsdp=-1"]


def _offload(runtime: Runtime) -> list[str]:
    if runtime.program.model.module.remat != "full" or runtime.mesh.devices.flat[0].platform != "tpu":
        return []
    return [
        "let the inputs of layers wait in the host's memory: REMAT = @remat.Remat() and "
        'remat.Remat.offload = ("residual",), see t5x_scale/models/remat.py'
    ]
