"""The collectives of a compiled program: what each moves, between whom, and over which links.

A collective is an instruction of that name, the `-start` of an asynchronous pair, a fusion or an asynchronous call
around one (on TPU7x another core of the chip, the sparse core, makes them beside what is computed), or the `send` of a
transfer between slices, which the compiler hands to the host.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from t5x_scale.roofline.groups import parse_groups, parse_pairs
from t5x_scale.roofline.hlo import Computation, Instruction, Module
from t5x_scale.roofline.links import Constants, Machine, Route, dcn_bandwidth, find_route, transfer_seconds

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
         "collective-broadcast")  # fmt: skip
# What begins a computation that runs beside the stream.
ASYNC_CALLS = ("async-start", "call-start")
_GROUPS = re.compile(r"replica_groups=")
_CHANNEL, _CHAIN = r"channel_id=(\d+)", r"chain_id=\W*(\d+)"
_PAIRS = re.compile(r"source_target_pairs=")
_COLORS = re.compile(r'"strategy":"(\w+)","debug":"[^"]*?colors:(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective, once.

    Attributes:
      kind: one of `KINDS`.
      axes: mesh axes that it spans, or `dcn` of a transfer between slices that the hosts make.
      size: devices of a group.
      slices: slices that a group spans.
      payload: bytes on a device of the larger side: what is reduced, the gathered result, what is exchanged.
      seconds: on its links, undisturbed.
      resources: links that it occupies: ("ici", dimension, direction) or ("dcn",).
      op_name: where it comes from.
      is_async: whether it is an asynchronous pair.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    slices: int
    payload: float
    seconds: float
    resources: tuple[tuple, ...]
    op_name: str
    is_async: bool

    @property
    def links(self) -> str:
        """What carries it: `ICI xy`, the dimensions of the torus, or `DCN` between slices, or both."""
        dims = sorted({resource[1] for resource in self.resources if resource[0] == "ici"})
        parts = ["ICI " + "".join("xyz"[dim] for dim in dims)] if dims else []
        return " + ".join(parts + ["DCN"] * (("dcn",) in self.resources))


def base_kind(opcode: str) -> str | None:
    """`all-gather-start` -> `all-gather`; None for what is no collective, or the end of one."""
    name = opcode.removesuffix("-start")
    return name if name in KINDS else None


def find_collective(
    module: Module, computation: Computation, instruction: Instruction, machine: Machine, constants: Constants
) -> Collective | None:
    """The collective that an instruction is or begins, or None."""
    kind = base_kind(instruction.opcode)
    if kind is not None:
        is_async = instruction.opcode.endswith("-start")
        payload = _payload(kind, computation.operand_bytes(instruction), instruction)
        return _make(kind, instruction, payload, machine, constants, is_async)
    if instruction.opcode == "send" and "megascale" in instruction.attributes:
        return _between_slices(computation, instruction, machine, constants)
    if instruction.opcode in ("fusion", *ASYNC_CALLS):
        return _wrapped(module, instruction, machine, constants)
    return None


def pair_name(module: Module, instruction: Instruction) -> str:
    """What the two ends of a transfer have in common.

    The name of the start; of a transfer between slices the point at which the hosts meet; of a collective that is cut
    into steps, which stand in fusions, the channel.
    """
    met = instruction.find(r'_xla_host_transfer_rendezvous="([^"]*)"')
    if met is not None:
        return met
    inner = module.called(instruction, "calls") if instruction.opcode == "fusion" else None
    for part in inner.instructions if inner else ():
        if base_kind(part.opcode):
            return f"channel {part.find(_CHANNEL)} {part.find(_CHAIN)}"
    return instruction.name


def steps_of(module: Module, instruction: Instruction) -> tuple[bool, bool, bool]:
    """Of a fusion: whether a collective that runs in steps begins in it, goes on in it, and ends in it."""
    inner = module.called(instruction, "calls") if instruction.opcode == "fusion" else None
    if inner is None or not any(base_kind(part.opcode) for part in inner.instructions):
        return False, False, False
    targets = [part.attributes for part in inner.instructions if part.opcode == "custom-call"]
    begins = any("AsyncCollectiveStart" in target for target in targets)
    ends = any("AsyncCollectiveDone" in target for target in targets)
    return begins, begins or ends or inner.name.startswith("async_collective"), ends


def called_by(module: Module, instruction: Instruction) -> Computation | None:
    """What a fusion or an asynchronous call runs; of a call that only calls another, what that one runs."""
    inner = module.called(instruction, "calls") or module.called(instruction, "to_apply")
    nested = next((part for part in inner.instructions if part.opcode in ASYNC_CALLS), None) if inner else None
    return inner if nested is None else called_by(module, nested)


def _wrapped(module: Module, instruction: Instruction, machine: Machine, constants: Constants) -> Collective | None:
    inner = called_by(module, instruction)
    if inner is None:
        return None
    begins, goes_on, _ = steps_of(module, instruction)
    if goes_on and not begins:
        return None
    for part in inner.instructions:
        kind = base_kind(part.opcode)
        if kind is None:
            continue
        payload = _payload(kind, inner.operand_bytes(part), part)
        # An all-reduce of which each device keeps its own part.
        if kind == "all-reduce" and 0 < inner.root.bytes < part.bytes:
            kind = "reduce-scatter"
        merged = dataclasses.replace(part, attributes=part.attributes + instruction.attributes)
        return _make(kind, merged, payload, machine, constants, begins or instruction.opcode in ASYNC_CALLS)
    return None


def _payload(kind: str, operand_bytes: float, instruction: Instruction) -> float:
    if kind == "all-gather" and not instruction.opcode.endswith("-start"):
        return instruction.bytes
    if kind == "all-gather":
        # The start's result holds the operands as well.
        return instruction.bytes - operand_bytes
    return operand_bytes or instruction.bytes


def _make(
    kind: str, instruction: Instruction, payload: float, machine: Machine, constants: Constants, is_async: bool
) -> Collective:
    if kind == "collective-permute":
        members, route, resources = _permuted(instruction, machine)
    else:
        members = _members(instruction, machine)
        route = _as_compiled(find_route(machine, members), instruction)
        resources = tuple(("ici", dim, way) for dim in route.dims or (0,) for way in (1, -1))
    timed = {"ragged-all-to-all": "all-to-all", "collective-broadcast": "all-gather"}.get(kind, kind)
    if route.slices > 1:
        resources += (("dcn",),)
    return Collective(
        kind=kind,
        axes=machine.axes_of(members),
        size=route.size,
        slices=route.slices,
        payload=payload,
        seconds=transfer_seconds(machine, route, timed, payload, constants),
        resources=resources,
        op_name=instruction.op_name,
        is_async=is_async,
    )


def _members(instruction: Instruction, machine: Machine) -> np.ndarray:
    match = _GROUPS.search(instruction.attributes)
    if match is None:
        return np.arange(machine.num_devices)
    return parse_groups(instruction.attributes[match.end() :], machine.num_devices)[0]


def _permuted(instruction: Instruction, machine: Machine) -> tuple[np.ndarray, Route, tuple[tuple, ...]]:
    """Of a permutation: sender and receiver of its longest way, the links between, and which directions it occupies.

    All devices send at once, so that a way of several links shares each of them with as many others.
    """
    match = _PAIRS.search(instruction.attributes)
    pairs = parse_pairs(instruction.attributes[match.end() :].split("}}")[0] + "}" if match else "")
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if not len(pairs):
        return np.array([0]), Route(1, 1, (), (), 1.0, 0), ()
    slices = 2 if (machine.slices[pairs[:, 0]] != machine.slices[pairs[:, 1]]).any() else 1
    if machine.coords is None:
        return pairs[0], Route(2 * slices, slices, (), (), 1.0, 1), (("ici", 0, 1),)
    steps = machine.coords[pairs[:, 1]] - machine.coords[pairs[:, 0]]
    for dim, size in enumerate(machine.torus):
        if machine.wraps(dim):
            steps[:, dim] = (steps[:, dim] + (size - 1) // 2) % size - (size - 1) // 2
    hops = np.abs(steps).sum(axis=1)
    dims = tuple(np.flatnonzero(steps.any(axis=0)).tolist())
    load = max(1.0, float(np.abs(steps).mean(axis=0).max()))
    route = Route(2 * slices, slices, dims, (2,) * len(dims), 1.0 / load, max(int(hops.max()), 1))
    ways = tuple(("ici", dim, 1 if steps[:, dim].mean() >= 0 else -1) for dim in dims)
    return pairs[int(hops.argmax())], route, ways


def _as_compiled(route: Route, instruction: Instruction) -> Route:
    """The route with as many lanes as the compiler's algorithm uses of those that there are."""
    if not route.dims:
        return route
    strategy = _COLORS.search(instruction.attributes)
    if strategy is not None:
        name, colors = strategy.group(1), int(strategy.group(2))
        lanes = colors if name.startswith("UniDirection") else 2 * colors
        is_ring = "StrategyRing" in name
    elif '"emitter":"1DAllGather' in instruction.attributes:
        lanes, is_ring = 2, True
    else:
        return route
    hops = route.within // 2 if is_ring else route.hops
    return dataclasses.replace(route, lanes=min(route.lanes, float(lanes)), hops=hops)


def _between_slices(
    computation: Computation, instruction: Instruction, machine: Machine, constants: Constants
) -> Collective:
    data = computation.find(instruction.operands[0]) if instruction.operands else None
    payload = float(data.bytes if data is not None else instruction.arrays[0].bytes)
    name = instruction.find(r'_xla_megascale_transfer_type="(\w+)"') or "SEND"
    kind = name.lower().replace("_", "-")
    slices = len(set(machine.slices.tolist()))
    passes = 2 * (1 - 1 / slices) if kind == "all-reduce" else 1.0
    seconds = constants.launch_seconds + passes * payload / dcn_bandwidth(machine, constants)
    return Collective(kind, ("dcn",), slices, slices, payload, seconds, (("dcn",),), instruction.op_name, True)
