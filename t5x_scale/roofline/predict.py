"""The prediction: one compiled step, one machine, one report."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

from t5x_scale.roofline.hlo import parse
from t5x_scale.roofline.kernels import KernelModel
from t5x_scale.roofline.links import Constants, Machine
from t5x_scale.roofline.memory import Copied, Large, Memory, copied_arguments, largest, measure_memory
from t5x_scale.roofline.schedule import Scheduler, Walk


@dataclasses.dataclass(frozen=True)
class ModelFlops:
    """What a model needs for one step, on all devices together (`models.accounting.train_flops_per_token` x tokens).

    Attributes:
      tokens: of a step.
      full: FLOPs with the whole square of attention, as PaLM counts.
      causal: with half of it.
      active_attention_share: of the square of queries and keys that attention kernels compute; None is the default of
        `KernelModel`.
    """

    tokens: int
    full: float
    causal: float
    active_attention_share: float | None = None


@dataclasses.dataclass(frozen=True)
class CollectiveRow:
    """Collectives of one kind over the same axes and links. Seconds and bytes are a step's, of one device.

    Attributes:
      kind: `all-gather`, …
      axes: mesh axes, or `dcn` for what the host sends to other slices.
      links: `ICI xyz`, by dimension of the torus, or `DCN`.
      size: devices of a group.
      slices: that a group spans.
      count: runs a step.
      payload: bytes a step.
      seconds: on the links.
      exposed: of those, not hidden by computation.
      example: where the one that costs most comes from.
    """

    kind: str
    axes: tuple[str, ...]
    links: str
    size: int
    slices: int
    count: float
    payload: float
    seconds: float
    exposed: float
    example: str

    @property
    def hidden(self) -> float:
        """Share of the time on the links that computation hides."""
        return 1 - min(self.exposed / self.seconds, 1.0) if self.seconds else 1.0


@dataclasses.dataclass(frozen=True)
class ComputeRow:
    """An instruction that takes long: name, kind, seconds a step, runs a step, share of the peak, origin."""

    name: str
    kind: str
    seconds: float
    count: float
    efficiency: float
    op_name: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What a step of a program takes. Seconds and bytes are of one device.

    Attributes:
      chip: name of the chip.
      num_chips: of the machine.
      mesh: axis -> size, axes of size 1 left out.
      model: what the model needs, as it was given.
      seconds: predicted time of a step.
      busy: kind (`matmul`, `kernel`, `other`) -> seconds of computation.
      exposed: seconds that collectives are waited for.
      host_exposed: seconds that copies to and from the host's memory are waited for.
      flops: FLOPs that a device runs a step, recomputation included.
      mfu: model FLOPs over peak, attention counted in full; None without `ModelFlops`.
      mfu_causal: with half of the attention.
      hfu: FLOPs really run over peak.
      tokens_per_second: of all devices; None without `ModelFlops`.
      bound: what bounds the step, in words.
      collectives: by kind and axes, the most exposed first.
      slowest: instructions that take longest.
      memory: bytes by what they are; None where none was given.
      largest: the largest arrays.
      copied: arguments that several devices hold alike.
      notes: what the prediction does not see, or had to assume.
    """

    chip: str
    num_chips: int
    mesh: dict[str, int]
    model: ModelFlops | None
    seconds: float
    busy: dict[str, float]
    exposed: float
    host_exposed: float
    flops: float
    mfu: float | None
    mfu_causal: float | None
    hfu: float
    tokens_per_second: float | None
    bound: str
    collectives: tuple[CollectiveRow, ...]
    slowest: tuple[ComputeRow, ...]
    memory: Memory | None
    largest: tuple[Large, ...]
    copied: tuple[Copied, ...]
    notes: tuple[str, ...]


def analyse(
    text: str,
    machine: Machine,
    memory: Any = None,
    flops: ModelFlops | None = None,
    constants: Constants | None = None,
    kernels: KernelModel | None = None,
) -> Report:
    """Predicts what a compiled step takes.

    Args:
      text: of the optimised program: `compiled.as_text()`.
      machine: what it was compiled for: `make_machine(mesh, topology)`.
      memory: `compiled.memory_analysis()`.
      flops: what the model needs; without it there is no MFU.
      constants: of links and overheads; the calibrated ones by default.
      kernels: of attention kernels; by default the calibrated ones for the chip.

    Raises:
      ValueError: the text is not that of a compiled program.
    """
    module = parse(text)
    constants = constants or Constants()
    kernels = kernels or KernelModel()
    if flops is not None and flops.active_attention_share is not None:
        kernels = dataclasses.replace(kernels, active_share=flops.active_attention_share)
    walk = Scheduler(module, machine, constants, kernels).walk(module.main)
    peak = machine.num_devices * machine.chip.device_peak_flops
    seconds = max(walk.seconds, 1e-12)
    rows = _collective_rows(walk)
    exposed = sum(row.exposed for row in rows)
    return Report(
        chip=machine.chip.name,
        num_chips=machine.num_chips,
        mesh={name: size for name, size in zip(machine.axes, machine.shape, strict=True) if size > 1},
        model=flops,
        seconds=walk.seconds,
        busy=dict(walk.busy),
        exposed=exposed,
        host_exposed=walk.host_exposed,
        flops=walk.flops,
        mfu=flops.full / peak / seconds if flops else None,
        mfu_causal=flops.causal / peak / seconds if flops else None,
        hfu=walk.flops / machine.chip.device_peak_flops / seconds,
        tokens_per_second=flops.tokens / seconds if flops else None,
        bound=_bound(walk, rows, machine.chip.device_peak_flops),
        collectives=rows,
        slowest=_slowest(walk, machine.chip.device_peak_flops),
        memory=None if memory is None else measure_memory(module, memory),
        largest=tuple(largest(module)),
        copied=tuple(copied_arguments(module, machine.num_devices, _data_parallel(machine))),
        notes=_notes(walk, machine),
    )


def _data_parallel(machine: Machine) -> int:
    """Copies of the model that the mesh means to hold."""
    return dict(zip(machine.axes, machine.shape, strict=True)).get("data", 1)


def _collective_rows(walk: Walk) -> tuple[CollectiveRow, ...]:
    groups = defaultdict(list)
    for use in walk.uses.values():
        one = use.collective
        groups[one.kind, one.axes, one.links, one.size, one.slices].append(use)
    rows = []
    for (kind, axes, links, size, slices), uses in groups.items():
        dearest = max(uses, key=lambda use: (use.exposed, use.count * use.collective.seconds))
        rows.append(
            CollectiveRow(
                kind,
                axes,
                links,
                size,
                slices,
                count=sum(use.count for use in uses),
                payload=sum(use.count * use.collective.payload for use in uses),
                seconds=sum(use.count * use.collective.seconds for use in uses),
                exposed=sum(use.exposed for use in uses),
                example=dearest.collective.op_name,
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.exposed, -row.seconds)))


def _slowest(walk: Walk, peak: float, count: int = 15) -> tuple[ComputeRow, ...]:
    rows = [
        ComputeRow(name, work.kind, work.seconds, work.count, work.flops / work.seconds / peak, work.op_name)
        for name, work in walk.work.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.seconds)[:count])


def _bound(walk: Walk, rows: tuple[CollectiveRow, ...], peak: float) -> str:
    """The largest share of the step, in words."""
    ideal = walk.flops / peak
    products = walk.busy.get("matmul", 0.0) + walk.busy.get("kernel", 0.0)
    shares = {
        "the matrix unit: products at the peak rate": min(ideal, products),
        "products below the peak rate (shapes, memory, fused vector work)": max(products - ideal, 0.0),
        "vector work and memory outside of products": walk.busy.get("other", 0.0),
        "copies to and from the host": walk.host_exposed,
    }
    by_axes: dict[str, float] = defaultdict(float)
    for row in rows:
        by_axes["+".join(row.axes) or "nothing"] += row.exposed
    shares |= {f"collectives over {axes}": seconds for axes, seconds in by_axes.items()}
    name, seconds = max(shares.items(), key=lambda item: item[1])
    return f"{name} ({100 * seconds / max(walk.seconds, 1e-12):.0f} % of the step)"


def _notes(walk: Walk, machine: Machine) -> tuple[str, ...]:
    unknown = dict.fromkeys(walk.unknown_loops)
    notes = [f"the turns of a loop are not in the program, it counts once: {name}" for name in unknown]
    if walk.usual_loops:
        notes.append("loops over the rows of experts turn as often as an even use of all experts makes them")
    if machine.chip.assumed:
        notes.append(f"assumed for {machine.chip.name}, no page gives it: {', '.join(machine.chip.assumed)}")
    if walk.busy.get("kernel"):
        notes.append(
            "time of attention kernels is counted from their shapes and blocks, of others from FLOPs at an assumed "
            "share of the peak"
        )
    if not machine.chip.link_bandwidth:
        notes.append("these devices have no known links: time of collectives is left out")
    notes.append("not seen: input pipeline, stragglers, checkpoints, contention of transfers for HBM")
    return tuple(notes)
