"""Which machine holds a run, how long it takes there, and what that costs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.models.accounting import train_flops_per_token
from t5x_scale.planner.amounts import Amount, bytes_text, count_text
from t5x_scale.planner.budgets import SECONDS_A_DAY, USUAL_DAYS, Budget
from t5x_scale.planner.memory import MemoryPlan, choose_micro_batches
from t5x_scale.planner.meshes import MeshPlan, choose_mesh
from t5x_scale.planner.shapes import Shape
from t5x_scale.planner.slices import DEFAULT_GENERATION, Slice, candidates, make_slice, parse_slice

# What a CPU does in three hours is a try, for which nobody rents a machine.
_CPU_DAYS = 3 / 24


@dataclasses.dataclass(frozen=True)
class Site:
    """A machine and how the model lies on it.

    Attributes:
      machine: it.
      mesh: how it is split.
      reason: why this one.
    """

    machine: Slice
    mesh: MeshPlan
    reason: str


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run takes of a machine.

    Attributes:
      flops: of the model, 6N + 12LHQT a token, as MFU counts them.
      mfu: that is assumed, of the peak.
      mfu_source: who says so.
      days: of uninterrupted running.
      chip_hours: of all chips.
      micro_batches: parts that a batch is cut into.
      memory: of a device.
    """

    flops: float
    mfu: float
    mfu_source: str
    days: float
    chip_hours: float
    micro_batches: int
    memory: MemoryPlan


@dataclasses.dataclass(frozen=True)
class Precompiled:
    """What `t5x_scale precompile --output=FILE` predicted."""

    mfu: float
    machine: Slice | None
    parameters: int
    path: str


def given(chips: Amount | None, mfu: Amount | None, precompiled: str | None) -> dict[str, Any]:
    """Machine and MFU as `make_budget` takes them, from flags or from the report of a compiled step.

    Raises:
      UserError: both say the MFU, or there is no such report.
    """
    if precompiled is None:
        return {"chips": chips, "mfu": mfu}
    if mfu is not None:
        raise UserError("--mfu and --precompiled both say the MFU: leave one of them out")
    found = load_precompiled(precompiled)
    if chips is None and found.machine is not None:
        chips = found.machine.gin_name
    return {"chips": chips, "mfu": found.mfu, "mfu_source": f"predicted by the compiler, {precompiled}"}


def load_precompiled(path: str) -> Precompiled:
    """The last step of a precompile report that has a prediction.

    Raises:
      UserError: it cannot be read, or predicts nothing.
    """
    try:
        record = json.loads(files.read_bounded(path))
    except (OSError, ValueError) as error:
        raise UserError(f"--precompiled: cannot read {path}: {error}") from error
    steps = record.get("steps") if isinstance(record, dict) else None
    made = [step for step in steps or [] if isinstance(step, dict) and (step.get("prediction") or {}).get("mfu")]
    if not made:
        raise UserError(f"--precompiled: {path} predicts no MFU; expected what `t5x_scale precompile --output` writes")
    prediction: dict[str, Any] = made[-1]["prediction"]
    return Precompiled(float(prediction["mfu"]), _machine(record, prediction), int(made[-1]["parameters"]), path)


def _machine(record: dict[str, Any], prediction: dict[str, Any]) -> Slice | None:
    topology, chips = record.get("topology"), prediction.get("num_chips")
    if not topology:
        return None
    one = parse_slice(topology)
    assert isinstance(one, Slice)
    slices = max(1, round((chips or one.chips) / one.chips))
    return make_slice(one.chip.name, one.chips, slices)


def choose_site(budget: Budget, shape: Shape, rows: float, length: int, flops: float) -> Site:
    """The machine that is given, or the smallest that holds the model and is done in time.

    Args:
      budget: may name a machine, a generation and days.
      shape: of the model, about.
      rows: of a batch, about.
      length: of a row.
      flops: of the run.

    Raises:
      UserError: none of the generation holds it.
    """
    if budget.machine is not None:
        return Site(budget.machine, _mesh(budget.machine, shape, rows), "given")
    if budget.days is None and budget.generation is None and _days(flops, make_slice("cpu", 1), 1.0) <= _CPU_DAYS:
        for machine, mesh in _holding("cpu", shape, rows, length):
            return Site(machine, mesh, "small enough for a CPU")
    generation, limit = budget.generation or DEFAULT_GENERATION, budget.days or USUAL_DAYS
    holding: list[Slice] = []
    for machine, mesh in _holding(generation, shape, rows, length):
        if _days(flops, machine, budget.mfu) <= limit:
            within = f"{limit:g} days" + ("" if budget.days else ", as is assumed")
            return Site(machine, mesh, f"the smallest {machine.chip.name} that holds it and is done within {within}")
        holding.append(machine)
    if not holding:
        raise UserError(
            f"no {generation} machine holds {count_text(shape.count.total)} parameters whose batches have "
            f"{rows:,.0f} rows: name another one with --chips"
        )
    last = holding[-1]
    return Site(
        last, _mesh(last, shape, rows), f"the largest {last.chip.name} whose devices have a row of a batch each"
    )


def _holding(generation: str, shape: Shape, rows: float, length: int) -> Iterator[tuple[Slice, MeshPlan]]:
    """Machines that hold the model and give every device something to do, ascending."""
    for machine in candidates(generation):
        mesh = _mesh(machine, shape, rows)
        if mesh.row_shares > max(rows, 1):
            break
        own_rows = max(1, round(rows / mesh.row_shares))
        _, memory = choose_micro_batches(shape, mesh, own_rows * mesh.row_shares, length, machine.device_bytes)
        if memory.fits:
            yield machine, mesh


def _mesh(machine: Slice, shape: Shape, rows: float) -> MeshPlan:
    return choose_mesh(machine, rows, shape.count.per_layer, shape.config.embed_dim)


def _days(flops: float, machine: Slice, mfu: float) -> float:
    return flops / (machine.peak_flops * mfu * SECONDS_A_DAY)


def price(budget: Budget, site: Site, shape: Shape, smallest_rows: int, rows: int, length: int, tokens: float) -> Cost:
    """What a run takes of its machine."""
    flops = train_flops_per_token(shape.count, shape.config, length) * tokens
    is_cpu = site.machine.chip.name == "cpu"
    mfu = 1.0 if is_cpu and not budget.mfu_source else budget.mfu
    source = budget.mfu_source or (
        f"assumed: {site.machine.peak_flops:.2g} FLOP/s in all, measured on two cores"
        if is_cpu
        else "assumed; --mfu or --precompiled say better"
    )
    days = _days(flops, site.machine, mfu)
    parts, memory = choose_micro_batches(shape, site.mesh, rows, length, site.machine.device_bytes, smallest_rows)
    return Cost(flops, mfu, source, days, days * 24 * site.machine.total_chips, parts, memory)


def memory_text(memory: MemoryPlan) -> str:
    """For people."""
    parts = (
        f"state {bytes_text(memory.state)}, gradients {bytes_text(memory.gradients)}, gathered weights "
        f"{bytes_text(memory.gathered)}, saved layers {bytes_text(memory.saved)}, working {bytes_text(memory.working)}"
    )
    fits = "" if memory.fits else "; DOES NOT FIT"
    return f"{bytes_text(memory.total)} of {bytes_text(memory.available)} a device ({parts}){fits}"


def chip_hours_text(cost: Cost, machine: Slice) -> str:
    """For people."""
    unit = "core-hours of a CPU" if machine.chip.name == "cpu" else "chip-hours"
    return f"{count_text(cost.chip_hours)} {unit}"
