"""Reads the text of a compiled program (`compiled.as_text()`) into computations and instructions.

Tolerant on purpose: the format changes from release to release, and a line that is not understood must cost one line of
the report, not the report. Only what a cost needs is kept apart; everything else stays text (`Instruction.attributes`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$")
_END = re.compile(r"\}(, execution_thread=\"[^\"]*\")?\s*$")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_REFERENCE = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")

HBM, HOST = 0, 5


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: dtype, dimensions and the memory it lies in (0 is HBM, 5 the host's)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without padding. An eight-bit float has one of a dozen names."""
        bits = _BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 4 if self.dtype.startswith("f4") else 0)
        return -(-self.size * bits // 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without the percent sign.
      opcode: `fusion`, `all-gather-start`, …
      arrays: of the result, tuples flattened.
      operands: names of instructions of the same computation.
      arguments: what stands between the parentheses (`32` of a constant).
      attributes: what stands behind them.
      is_root: the computation's result.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool = False

    @property
    def bytes(self) -> int:
        """Of the result."""
        return sum(array.bytes for array in self.arrays)

    @functools.cached_property
    def called(self) -> dict[str, str]:
        """Role (`calls`, `to_apply`, `body`, `condition`, `branch 0` …) -> name of a computation."""
        roles = dict(_CALLED.findall(self.attributes))
        branches = _BRANCHES.search(self.attributes)
        names = [name.strip(" %") for name in branches.group(1).split(",")] if branches else []
        return roles | {f"branch {i}": name for i, name in enumerate(names)}

    def find(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes, or None."""
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else None

    @functools.cached_property
    def op_name(self) -> str:
        """The path of JAX names that the instruction comes from, or ""."""
        return self.find(r'op_name="([^"]*)"') or ""

    @functools.cached_property
    def estimated_cycles(self) -> float | None:
        """What the TPU compiler thinks it takes; None where it says nothing."""
        cycles = self.find(r'"estimated_cycles":"?(\d+)')
        return float(cycles) if cycles else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order of the schedule."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def _by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        """The result."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    def find(self, name: str) -> Instruction | None:
        """An instruction by its name."""
        return self._by_name.get(name)

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The operands that are known, in order."""
        return [self._by_name[name] for name in instruction.operands if name in self._by_name]

    def operand_bytes(self, instruction: Instruction) -> int:
        """Bytes of all operands."""
        return sum(operand.bytes for operand in self.operands(instruction))


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: name of the one that runs.
    """

    computations: dict[str, Computation]
    entry: str

    @property
    def main(self) -> Computation:
        """The computation that runs."""
        return self.computations[self.entry]

    def called(self, instruction: Instruction, role: str) -> Computation | None:
        """The computation in a role of an instruction."""
        return self.computations.get(instruction.called.get(role, ""))


def parse(text: str) -> Module:
    """Reads a module.

    Raises:
      ValueError: there is no entry computation in the text.
    """
    computations: dict[str, Computation] = {}
    entry = name = None
    lines: list[Instruction] = []
    for line in _logical_lines(text):
        if name is None:
            header = _HEADER.match(line)
            if header and "=" not in line.split("(")[0]:
                name, lines = header.group(2), []
                entry = name if header.group(1) else entry
        elif _END.match(line):
            computations[name] = Computation(name, tuple(lines))
            name = None
        else:
            instruction = parse_instruction(line)
            if instruction is not None:
                lines.append(instruction)
    if entry is None:
        raise ValueError("no entry computation: this is not the text of a compiled program")
    return Module(computations, entry)


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, with what belongs to an instruction and stands on lines of its own (metadata of kernels) joined to it."""
    held = None
    for line in text.splitlines():
        if held is not None and not (_NAME.match(line) or _END.match(line)):
            held += line
            continue
        if held is not None:
            yield held
            held = None
        if _NAME.match(line):
            held = line
        else:
            yield line
    if held is not None:
        yield held


def parse_instruction(line: str) -> Instruction | None:
    """Reads one line of a computation; None where it is none."""
    match = _NAME.match(line)
    if match is None:
        return None
    rest = _COMMENT.sub("", line[match.end() :])
    end = _shape_end(rest)
    opcode = _OPCODE.match(rest, end)
    if opcode is None:
        return None
    close = _closing(rest, opcode.end() - 1)
    arguments = rest[opcode.end() : close]
    return Instruction(
        name=match.group(2),
        opcode=opcode.group(1),
        arrays=parse_shape(rest[:end]),
        operands=tuple(_references(arguments)) if opcode.group(1) not in ("constant", "parameter") else (),
        arguments=arguments,
        attributes=rest[close + 1 :],
        is_root=match.group(1) is not None,
    )


def parse_shape(text: str) -> tuple[Array, ...]:
    """`(f32[2,4]{1,0:S(5)}, s32[])` -> its arrays."""
    return tuple(_parse_array(*match.groups()) for match in _ARRAY.finditer(text))


def _parse_array(dtype: str, dims: str, layout: str | None) -> Array:
    space = _SPACE.search(layout or "")
    sizes = tuple(int(size.strip("<= ")) for size in dims.split(",") if size.strip("<= ").isdigit())
    return Array(dtype, sizes, int(space.group(1)) if space else HBM)


def _references(arguments: str) -> Iterator[str]:
    if "%" in arguments:
        yield from _REFERENCE.findall(arguments)
        return
    for part in re.split(r",\s*(?![^\[{(]*[\]})])", arguments):
        words = part.split()
        if words:
            yield words[-1]


def _shape_end(text: str) -> int:
    if text.startswith("("):
        return _closing(text, 0) + 1
    space = text.find(" ")
    return len(text) if space < 0 else space


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`; quoted text does not count."""
    depth, quoted = 0, False
    for i in range(start, len(text)):
        character = text[i]
        if character == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif not quoted and character == "(":
            depth += 1
        elif not quoted and character == ")":
            depth -= 1
            if depth == 0:
                return i
    return len(text)
