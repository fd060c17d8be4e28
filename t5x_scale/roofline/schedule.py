"""Walks a scheduled program with a clock: what computes, what waits for which links, and how long it all takes.

The text of a compiled program is its schedule. One stream computes, in order; transfers begin at their `-start`, run on
their links while the stream goes on, and are waited for at their `-done`. What is left over of a transfer then is
exposed; a collective that is no pair is exposed as a whole. Loops are walked once and multiplied.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from t5x_scale.roofline.chips import Chip
from t5x_scale.roofline.collectives import (
    ASYNC_CALLS,
    Collective,
    called_by,
    find_collective,
    pair_name,
    steps_of,
)
from t5x_scale.roofline.flops import fused_flops
from t5x_scale.roofline.hlo import HBM, HOST, Computation, Instruction, Module
from t5x_scale.roofline.kernels import KernelModel, is_kernel, kernel_cost
from t5x_scale.roofline.links import Constants, Machine
from t5x_scale.roofline.loops import trip_count, usual_turns

# What takes no time: names for what is already there, and numbers of the device.
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id",
         "opt-barrier", "add-dependency", "domain", "send-done", "recv"}  # fmt: skip
# Copies of a whole array or a part of it, mostly from HBM to where it is computed with.
_COPIES = {"copy-start", "slice-start", "dynamic-slice-start"}
# A copy into a part of an array.
_UPDATE = "dynamic-update-slice-start"
# Of the time that links are still busy, what a transfer may take to count as small.
_SMALL = 0.1
_MATMUL, _KERNEL, _OTHER = "matmul", "kernel", "other"
_HOST = "host"


@dataclasses.dataclass
class Use:
    """A collective and what became of it: how often it runs a step, and the seconds of all runs that are exposed."""

    collective: Collective
    count: float
    exposed: float


@dataclasses.dataclass(frozen=True)
class Work:
    """An instruction that computes: its kind, seconds of all its runs, their number, FLOPs of all, and its origin."""

    kind: str
    seconds: float
    count: float
    flops: float
    op_name: str


@dataclasses.dataclass
class Walk:
    """What a computation costs, loops multiplied in. Seconds of one device.

    Attributes:
      seconds: from beginning to end.
      busy: kind (`matmul`, `kernel`, `other`) -> seconds that the stream computes.
      flops: of matrix products and kernels.
      uses: collectives by name.
      host_exposed: seconds waited for host memory.
      work: instructions that compute, by name.
      unknown_loops: loops whose turns the text does not say; walked once.
      usual_loops: loops whose turns depend on data; walked as often as they turn where it is even.
    """

    seconds: float = 0.0
    busy: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    flops: float = 0.0
    uses: dict[str, Use] = dataclasses.field(default_factory=dict)
    host_exposed: float = 0.0
    work: dict[str, Work] = dataclasses.field(default_factory=dict)
    unknown_loops: list[str] = dataclasses.field(default_factory=list)
    usual_loops: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Walk, times: float = 1.0) -> None:
        """Adds what another computation costs, `times` times."""
        self.seconds += times * other.seconds
        self.flops += times * other.flops
        self.host_exposed += times * other.host_exposed
        self.unknown_loops += other.unknown_loops
        self.usual_loops += other.usual_loops
        for kind, seconds in other.busy.items():
            self.busy[kind] += times * seconds
        for name, use in other.uses.items():
            self.use(name, use.collective, times * use.count, times * use.exposed)
        for name, work in other.work.items():
            self._work(name, work, times)

    def use(self, name: str, collective: Collective, count: float, exposed: float) -> None:
        """Records runs of a collective."""
        known = self.uses.setdefault(name, Use(collective, 0.0, 0.0))
        known.count += count
        known.exposed += exposed

    def compute(self, name: str, kind: str, seconds: float, flops: float, op_name: str) -> None:
        """Records an instruction that computes."""
        self.seconds += seconds
        self.busy[kind] += seconds
        self.flops += flops
        if seconds:
            self._work(name, Work(kind, seconds, 1.0, flops, op_name))

    def _work(self, name: str, work: Work, times: float = 1.0) -> None:
        before = self.work.get(name, Work(work.kind, 0.0, 0.0, 0.0, work.op_name))
        self.work[name] = dataclasses.replace(
            before,
            seconds=before.seconds + times * work.seconds,
            count=before.count + times * work.count,
            flops=before.flops + times * work.flops,
        )


class Scheduler:
    """Walks the computations of a module for a machine."""

    def __init__(self, module: Module, machine: Machine, constants: Constants, kernels: KernelModel):
        self.module = module
        self.machine = machine
        self.constants = constants
        self.kernels = kernels
        self._walked: dict[str, Walk] = {}

    def walk(self, computation: Computation) -> Walk:
        """What one run of a computation costs."""
        if computation.name not in self._walked:
            self._walked[computation.name] = _Stream(self, computation).run()
        return self._walked[computation.name]


class _Stream:
    """One run through a computation."""

    def __init__(self, scheduler: Scheduler, computation: Computation):
        self.scheduler = scheduler
        self.computation = computation
        self.result = Walk()
        self.free_at: dict[tuple, float] = defaultdict(float)
        self.occupied: dict[tuple, float] = defaultdict(float)
        # What the ends of a transfer have in common -> (when it is over, name and collective, or what else it is).
        self.pending: dict[str, tuple[float, tuple[str, Collective] | str]] = {}

    def run(self) -> Walk:
        for instruction in self.computation.instructions:
            self._step(instruction)
        # What was begun here and ends in the next turn of a loop: the links limit how fast turns can follow.
        missing = max(self.occupied.values(), default=0.0) - self.result.seconds
        if self.pending and missing > 0:
            self._expose(missing, list(self.pending.values())[-1][1])
        return self.result

    def _step(self, instruction: Instruction) -> None:
        opcode = instruction.opcode
        if opcode in _FREE:
            return
        if opcode in ("while", "call", "conditional"):
            self._descend(instruction)
        elif opcode.endswith("-done"):
            self._finish(instruction)
        elif opcode in _COPIES or (opcode == _UPDATE and _is_hosted(instruction)):
            self._copy(instruction)
        else:
            self._run(instruction)

    def _run(self, instruction: Instruction) -> None:
        """Anything else: it begins a transfer, waits for one from end to end, computes, or (in a fusion) all of it."""
        scheduler, module = self.scheduler, self.scheduler.module
        _, in_steps, ends = steps_of(module, instruction)
        collective = find_collective(module, self.computation, instruction, scheduler.machine, scheduler.constants)
        if collective is not None:
            self._transfer(instruction, collective)
        elif instruction.opcode in ASYNC_CALLS:
            self._delegate(instruction)
        if in_steps or (collective is None and instruction.opcode not in ASYNC_CALLS):
            self._compute(instruction)
        if ends:
            self._wait(pair_name(module, instruction))

    def _compute(self, instruction: Instruction) -> None:
        scheduler = self.scheduler
        kind, seconds, flops = instruction_cost(
            scheduler.module, self.computation, instruction, scheduler.machine.chip, scheduler.kernels
        )
        if kind != _KERNEL:
            seconds = scheduler.constants.stretch(seconds, flops / scheduler.machine.chip.device_peak_flops)
        self.result.compute(instruction.name, kind, seconds, flops, instruction.op_name)

    def _delegate(self, instruction: Instruction) -> None:
        """Another core of the chip gathers or turns an array: its time is that of the memory."""
        inner = called_by(self.scheduler.module, instruction)
        if inner is not None and inner.instructions:
            chip = self.scheduler.machine.chip
            seconds = _moved_bytes(inner, inner.root) / (chip.hbm_bandwidth / chip.devices)
            self.pending[instruction.name] = (self._occupy((("other core",),), seconds), _OTHER)

    def _transfer(self, instruction: Instruction, collective: Collective) -> None:
        end = self._occupy(collective.resources, collective.seconds)
        if collective.is_async:
            self.pending[pair_name(self.scheduler.module, instruction)] = (end, (instruction.name, collective))
            self.result.use(instruction.name, collective, 1.0, 0.0)
        else:
            self.result.use(instruction.name, collective, 1.0, end - self.result.seconds)
            self.result.seconds = end

    def _finish(self, instruction: Instruction) -> None:
        started = self.computation.find(instruction.operands[0]) if instruction.operands else None
        if started is not None:
            self._wait(pair_name(self.scheduler.module, started))

    def _wait(self, pair: str) -> None:
        end, begun = self.pending.pop(pair, (0.0, _HOST))
        self._expose(max(end - self.result.seconds, 0.0), begun)

    def _expose(self, seconds: float, begun: tuple[str, Collective] | str) -> None:
        self.result.seconds += seconds
        if begun == _HOST:
            self.result.host_exposed += seconds
        elif isinstance(begun, str):
            self.result.busy[begun] += seconds
        else:
            self.result.use(*begun, 0.0, seconds)

    def _copy(self, instruction: Instruction) -> None:
        """Copies to and from the host's memory take time; those between HBM and the chip's own are prefetches.

        The link to the host carries its bandwidth each way: what leaves does not wait for what comes. Copies of one way
        are taken to follow one another as they were asked for; no page says how they share the link.
        """
        bandwidth = self.scheduler.machine.chip.host_bandwidth
        if _is_hosted(instruction) and bandwidth:
            # Beside a part stands the whole, of which no more is moved than the part.
            seconds = min(array.bytes for array in instruction.arrays if array.dims) / bandwidth
            self.pending[instruction.name] = (self._occupy((("host", _leaves(instruction)),), seconds), _HOST)

    def _occupy(self, resources: tuple[tuple, ...], seconds: float) -> float:
        """The moment at which a transfer that is asked for now is over.

        Large ones follow one another; the packets of a small one find their way between those of a large one.
        """
        now = self.result.seconds
        start = max([now, *(self.free_at[resource] for resource in resources)])
        if seconds < _SMALL * (start - now):
            return now + 2 * seconds
        for resource in resources:
            self.free_at[resource] = start + seconds
            self.occupied[resource] += seconds
        return start + seconds

    def _descend(self, instruction: Instruction) -> None:
        module, scheduler = self.scheduler.module, self.scheduler
        if instruction.opcode == "while":
            body = module.called(instruction, "body")
            turns = trip_count(module, self.computation, instruction)
            if turns is None:
                turns = usual_turns(instruction)
                loops = self.result.unknown_loops if turns is None else self.result.usual_loops
                loops.append(instruction.op_name or instruction.name)
            if body is not None:
                self.result.add(scheduler.walk(body), 1 if turns is None else turns)
            return
        names = [name for role, name in instruction.called.items() if role != "condition"]
        walks = [scheduler.walk(module.computations[name]) for name in names if name in module.computations]
        if walks:
            # Of the branches of a condition the dearest.
            self.result.add(max(walks, key=lambda walk: walk.seconds))


def _is_hosted(copy: Instruction) -> bool:
    """Whether a copy goes to the host's memory or comes from it."""
    return HOST in {array.space for array in copy.arrays[:2]}


def _leaves(copy: Instruction) -> bool:
    """Whether a copy goes to the host's memory: what it makes, or the whole of which it writes a part, lies there."""
    return copy.arrays[0].space == HOST and copy.opcode in ("copy-start", _UPDATE)


def instruction_cost(
    module: Module, computation: Computation, instruction: Instruction, chip: Chip, kernels: KernelModel
) -> tuple[str, float, float]:
    """(kind, seconds, FLOPs) of an instruction that computes.

    The compiler's estimate where there is one; otherwise what memory or the matrix unit allows.
    """
    if is_kernel(instruction):
        cost = kernel_cost(computation, instruction, chip, kernels)
        return _KERNEL, cost.seconds, cost.flops
    flops = fused_flops(module, computation, instruction)
    kind = _MATMUL if flops else _OTHER
    if instruction.estimated_cycles is not None and chip.clock:
        return kind, instruction.estimated_cycles / chip.clock, flops
    if steps_of(module, instruction)[1]:
        # A step of a collective, and perhaps a product: what is gathered is no traffic of the computation.
        return kind, flops / chip.device_peak_flops, flops
    moved = _moved_bytes(computation, instruction) / (chip.hbm_bandwidth / chip.devices)
    return kind, max(moved, flops / chip.device_peak_flops), flops


def _moved_bytes(computation: Computation, instruction: Instruction) -> float:
    """Bytes between HBM and the chip; what is updated in place or sliced moves only the part."""
    written = sum(array.bytes for array in instruction.arrays if array.space == HBM)
    if instruction.opcode == "custom-call":
        return 0.0
    if instruction.opcode in ("iota", "broadcast", "rng-bit-generator"):
        return written
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    read = [sum(a.bytes for a in operand.arrays if a.space == HBM) for operand in computation.operands(instruction)]
    # The compiler names a fusion after its root.
    if read and "dynamic-update-slice" in (instruction.opcode + instruction.name):
        return 2 * (sum(read) - max(read))
    return written + sum(read)
