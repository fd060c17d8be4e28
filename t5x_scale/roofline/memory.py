"""What a compiled step holds in the memory of a chip, and which arrays are large.

The totals are the compiler's own (`compiled.memory_analysis()`). What they consist of is read from the program: the
arguments with the names and shardings that JAX gave them, what loops stack up (saved activations, gradients), and the
largest results.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from t5x_scale.roofline.hlo import HBM, HOST, Array, Computation, Instruction, Module
from t5x_scale.roofline.loops import trip_count

# Views of other arrays, and loops' own states, which are their parts.
_VIEWS = {
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "while",
    "call",
    "conditional",
    "copy-done",
    "after-all",
}
# Bytes of a device from which a needless copy is worth a line.
LARGE = 2**24


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a device, by what they are.

    Attributes:
      state: arguments: parameters, optimiser, batch.
      results: beyond what the state's memory is used again for.
      stacked: what forward loops save for the backward pass; part of `temporaries`.
      temporaries: the largest sum of what is alive at once, as the compiler lays it out.
      program: its code.
      host: what lies in the host's memory.
      total: of the device.
    """

    state: int
    results: int
    stacked: int
    temporaries: int
    program: int
    host: int
    total: int


@dataclasses.dataclass(frozen=True)
class Large:
    """A large array: what it is, its bytes on a device, and how many of it a step makes."""

    name: str
    array: str
    bytes: int
    kind: str
    op_name: str


@dataclasses.dataclass(frozen=True)
class Copied:
    """An argument of which several devices hold the same part although a dimension could be split further.

    Attributes:
      name: JAX's, such as `state.params['decoder']['final_norm']['scale']`.
      array: its part on a device.
      bytes: of that part.
      copies: devices that hold the same.
    """

    name: str
    array: str
    bytes: int
    copies: int


def measure_memory(module: Module, analysis: Any) -> Memory:
    """The totals of `compiled.memory_analysis()` (any object with its attributes) and what loops stack up."""

    def size(name: str) -> int:
        return int(getattr(analysis, f"{name}_size_in_bytes", 0) or 0)

    results = size("output") - size("alias")
    total = size("argument") + results + size("temp") + size("generated_code")
    return Memory(
        state=size("argument"),
        results=results,
        stacked=sum(array.bytes for _, array in stacks(module) if array.space == HBM),
        temporaries=size("temp"),
        program=size("generated_code"),
        host=size("host_argument") + size("host_output") + size("host_temp"),
        total=total,
    )


def stacks(module: Module) -> Iterator[tuple[Instruction, Array]]:
    """(loop, array) of what the loops of the forward pass write a slice of in each turn, for the backward pass."""
    for computation, loop in _loops(module, module.main):
        body, turns = module.called(loop, "body"), trip_count(module, computation, loop)
        if body is None or not turns or turns < 2 or "transpose(" in loop.op_name:
            continue
        names = body.root.operands
        for index, array in enumerate(loop.arrays):
            written = body.find(names[index]) if index < len(names) else None
            if written is None or not array.dims or array.dims[0] != turns:
                continue
            if not (written.opcode == "get-tuple-element" and written.find(r"index=(\d+)") == str(index)):
                yield loop, array


def largest(module: Module, count: int = 20) -> list[Large]:
    """The largest arrays of the entry and of loops: arguments and results, views left out."""
    found: dict[tuple[str, str], Large] = {}
    for computation in _scheduled(module, module.main):
        is_entry = computation.name == module.entry
        for instruction in computation.instructions:
            if instruction.opcode in _VIEWS and not (is_entry and instruction.opcode == "parameter"):
                continue
            for array in instruction.arrays:
                if array.space not in (HBM, HOST):
                    continue
                kind = "argument" if instruction.opcode == "parameter" else instruction.opcode
                row = Large(instruction.name, str(array), array.bytes, kind, instruction.op_name)
                found.setdefault((str(array), instruction.op_name or instruction.name), row)
    return sorted(found.values(), key=lambda row: -row.bytes)[:count]


def copied_arguments(module: Module, num_devices: int, wanted: int = 1, large: int = LARGE) -> list[Copied]:
    """Arguments that lie on the machine more often than they should.

    Args:
      module: the program.
      num_devices: of the machine.
      wanted: copies that data parallelism means to hold.
      large: bytes on a device from which an argument counts.
    """
    rows = []
    for instruction in module.main.instructions:
        if instruction.opcode != "parameter" or not instruction.arrays:
            continue
        parts = _parts(instruction.attributes)
        copies = wanted if parts is None else num_devices // max(parts, 1)
        if copies > wanted and instruction.bytes >= large:
            name = instruction.op_name.replace("\\'", "'")
            rows.append(Copied(name, str(instruction.arrays[0]), instruction.bytes, copies))
    return sorted(rows, key=lambda row: -row.bytes)


def _parts(attributes: str) -> int | None:
    """Different parts into which an argument is cut; None where the text does not say.

    `{replicated}`, `{devices=[8,1,4]<=[32] last_tile_dim_replicate}` or `{mesh['a'=8,'b'=4], [{'a'}, {}]}`.
    """
    start = attributes.find("sharding={")
    text = attributes[start : attributes.find(", metadata", start)] if start >= 0 else ""
    tiles = re.search(r"devices=\[([\d,]+)\]", text)
    if tiles is not None:
        dims = [int(size) for size in tiles.group(1).split(",")]
        kinds = re.search(r"last_tile_dims=\{([^}]*)\}", text)
        unused = len(kinds.group(1).split(",")) if kinds else int("last_tile_dim_replicate" in text)
        return math.prod(dims[: len(dims) - unused])
    mesh = re.search(r"mesh\[([^\]]*)\](.*)", text)
    if mesh is not None:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))}
        used = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh.group(2).split("replicated")[0])
        return math.prod(int(part or sizes.get(name, 1)) for name, part in used)
    return 1 if "replicated" in text else None


def _loops(module: Module, computation: Computation) -> Iterator[tuple[Computation, Instruction]]:
    for instruction in computation.instructions:
        if instruction.opcode == "while":
            yield computation, instruction
        for role, name in instruction.called.items():
            inner = module.computations.get(name)
            if inner is not None and instruction.opcode in ("while", "call", "conditional") and role != "condition":
                yield from _loops(module, inner)


def _scheduled(module: Module, main: Computation) -> Iterator[Computation]:
    """The entry and the bodies of loops: what has arrays of its own."""
    yield main
    for _, loop in _loops(module, main):
        body = module.called(loop, "body")
        if body is not None:
            yield body
