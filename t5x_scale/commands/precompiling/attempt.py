"""One step through the compiler: what was asked, whether it fits, and what it is predicted to take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from t5x_scale import run_files
from t5x_scale.commands.precompiling.advice import advise
from t5x_scale.commands.precompiling.memory import StepMemory, measure, shard_bytes
from t5x_scale.core.describe import describe
from t5x_scale.core.trees import flatten
from t5x_scale.data.pipeline import DataConfig
from t5x_scale.partitioning.out_of_memory import OutOfMemory
from t5x_scale.partitioning.replication import Copies, describe_copies, find_copies
from t5x_scale.program import Runtime
from t5x_scale.roofline import CHIPS, ModelFlops, Report, analyse, make_machine, to_json, to_text
from t5x_scale.roofline.hlo import parse
from t5x_scale.roofline.memory import measure_memory
from t5x_scale.run_files import bytes_text

# Near its limit the compiler gives up hiding what is exchanged: of a step at its limit on 64 v5p it hid no permutation,
# and a token was predicted to take a third longer than with 15 % of the memory free.
CROWDED_MEMORY, CROWDED_EXPOSED = 0.9, 0.15


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What became of compiling a step.

    Attributes:
      title: batch and mesh, in a line.
      setting: what decides the result, as plain values.
      seconds: of compiling.
      memory: None where the compiler refused.
      refusal: in its words, or that it does not fit after all; "" where it fits.
      crowding: said of a step that fits, but with so little room that it waits for its collectives; "" otherwise.
      advice: what to change, if it does not fit or is crowded.
      prediction: of the time it takes; None where the compiler refused or the chip is in no table.
      copies: large parameters that lie several times on the mesh though they need not.
    """

    title: str
    setting: dict[str, Any]
    seconds: float
    memory: StepMemory | None = None
    refusal: str = ""
    advice: tuple[str, ...] = ()
    copies: tuple[Copies, ...] = ()
    prediction: Report | None = None
    crowding: str = ""

    @property
    def fits(self) -> bool:
        """Whether a device has room for it."""
        return not self.refusal

    @property
    def step_seconds(self) -> float | None:
        """As predicted."""
        return None if self.prediction is None else self.prediction.seconds

    def text(self) -> str:
        """The report that is printed."""
        lines = [f"{self.title} compiled in {self.seconds:.0f} s" if self.memory else self.title]
        lines += self.memory.lines() if self.memory else []
        if problem := self.refusal or self.crowding:
            lines.append(problem)
            lines += ["what would help:", *(f"  {line}" for line in self.advice)] if self.advice else []
        if self.copies:
            lines += ["copies that need not be:", *(f"  {describe_copies(copies)}" for copies in self.copies)]
        if self.prediction:
            # Its memory stands above, by what it is for.
            lines += ["", to_text(dataclasses.replace(self.prediction, memory=None))]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same as plain values; sizes in bytes, times in seconds."""
        memory = None if self.memory is None else {**dataclasses.asdict(self.memory), "total": self.memory.total}
        return {
            **self.setting,
            "fits": self.fits,
            "compile_seconds": self.seconds,
            "memory": memory,
            "refusal": self.refusal,
            "crowding": self.crowding,
            "advice": list(self.advice),
            "copies": [copies._asdict() for copies in self.copies],
            "prediction": None if self.prediction is None else to_json(self.prediction),
        }


def attempt(
    runtime: Runtime, data: DataConfig, rows: int, log_every_steps: int, topology: str | None = None
) -> Attempt:
    """Compiles the step of `rows` rows.

    Raises:
      UserError: for anything but a step that does not fit.
    """
    setting = describe_setting(runtime, data, rows)
    title = f"{rows} x {data.sequence_length} tokens on {mesh_text(runtime)}"
    copies = tuple(find_copies(flatten(runtime.abstract_params)))
    started = time.monotonic()
    try:
        compiled = runtime.compile_step(rows, data.sequence_length, log_every_steps, data.field_names)
    except OutOfMemory as error:
        seconds = time.monotonic() - started
        advice = tuple(advise(runtime, rows, _state_bytes(runtime), error.available))
        return Attempt(title, setting, seconds, refusal=f"it {error.reason}", advice=advice, copies=copies)
    seconds = time.monotonic() - started
    analysis = compiled.memory_analysis()
    prediction = predict(runtime, compiled.as_text(), analysis, rows, data.sequence_length, topology)
    taken = prediction.memory if prediction else measure_memory(parse(compiled.as_text()), analysis)
    memory = measure(runtime, taken, getattr(analysis, "peak_memory_in_bytes", None))
    refusal, crowding, advice = "", find_crowding(memory, prediction), ()
    if not memory.fits:
        refusal = f"it does not fit: it needs {bytes_text(memory.total)}, and a device has {bytes_text(memory.usable)}"
    if refusal or crowding:
        advice = tuple(advise(runtime, rows, _state_bytes(runtime), memory.usable))
    return Attempt(title, setting, seconds, memory, refusal, advice, copies, prediction, crowding)


def find_crowding(memory: StepMemory, prediction: Report | None) -> str:
    """That a step probably waits for its collectives for want of memory."""
    if prediction is None or memory.usable is None or not prediction.seconds:
        return ""
    full, waiting = memory.total / memory.usable, prediction.exposed / prediction.seconds
    if full < CROWDED_MEMORY or waiting < CROWDED_EXPOSED:
        return ""
    return (
        f"collectives are waited for in {waiting:.0%} of the step, with {full:.0%} of the memory in use: near its "
        "limit the compiler hides few of them; a step with more room, of fewer rows even, may do more tokens a second"
    )


def predict(runtime: Runtime, text: str, analysis: Any, rows: int, length: int, topology: str | None) -> Report | None:
    """What a compiled step takes on the machine; None for devices that are in no table, such as CPUs."""
    if runtime.mesh.devices.flat[0].device_kind not in {chip.kind for chip in CHIPS.values()}:
        return None
    tokens = rows * length
    full, causal = (tokens * run_files.flops_per_token(runtime, length, kind) for kind in ("full", "causal"))
    return analyse(text, make_machine(runtime.mesh, topology), analysis, ModelFlops(tokens, full, causal))


def describe_setting(runtime: Runtime, data: DataConfig, rows: int) -> dict[str, Any]:
    """What the compiled step depends on, as plain values."""
    program, config = runtime.program, runtime.program.model.config
    return {
        "rows": rows,
        "length": data.sequence_length,
        "objective": type(data.objective).__name__,
        "mesh": {name: size for name, size in runtime.mesh.shape.items() if size > 1},
        "device_kind": runtime.mesh.devices.flat[0].device_kind,
        "devices": runtime.mesh.size,
        "parameters": sum(row.count for row in runtime.parameter_rows()),
        "remat": describe(program.model.module.remat),
        "micro_batches": program.step.micro_batches,
        "step": describe(program.step),
        "optimizer": type(program.optimizer).__name__,
        "dtype": config.dtype,
        "param_dtype": config.param_dtype,
        "z_loss": program.step.z_loss,
        "compiler_options": runtime.compiler_options,
    }


def setting_text(setting: dict[str, Any]) -> str:
    """The same in words, but for batch and mesh."""
    remat = remat_text(setting["remat"])
    return (
        f"{setting['parameters']:,} parameters on {setting['devices']} x {setting['device_kind']}; "
        f"{setting['objective']}, {setting['optimizer']}, {setting['dtype']} over {setting['param_dtype']} parameters, "
        f"z-loss {setting['z_loss']:g}, remat {remat}, {_parts_text(setting['step'])}"
    )


def _parts_text(step: Mapping[str, Any]) -> str:
    """How a batch is cut, from the plain values of a `StepConfig`."""
    parts, pipeline, is_layered = step["micro_batches"], step["pipeline"], step["accumulation"] == "layered"
    if pipeline is None:
        return f"{'layered accumulation over ' * is_layered}{parts} micro-batch(es)"
    outer = f"{parts} micro-batches, each in " * (parts > 1)
    flow = f"a {'layered ' * is_layered}pipeline of {pipeline['micro_batches']} micro-batches"
    return f"{outer}{flow}, repeats {pipeline['repeats']}"


def remat_text(remat: Any) -> str:
    """A remat setting in words, from its plain values."""
    if not isinstance(remat, dict):
        return str(remat)
    kinds = (f"{kind} {'+'.join(remat[kind])}" for kind in ("save", "offload") if remat[kind])
    return ", ".join(kinds) or "full"


def mesh_text(runtime: Runtime) -> str:
    """The axes of the mesh with more than one device."""
    return " x ".join(f"{name}={size}" for name, size in runtime.mesh.shape.items() if size > 1) or "one device"


def _state_bytes(runtime: Runtime) -> int:
    return shard_bytes(runtime.abstract_state.params) + shard_bytes(runtime.abstract_state.opt_state)
