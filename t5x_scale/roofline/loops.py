"""How often a loop of a compiled program turns.

The compiler's own cost analysis counts a loop's body once. The number stands in the text: as `known_trip_count`, or as
the constant that the loop's condition compares its counter with.
"""

from __future__ import annotations

import re

from t5x_scale.roofline.hlo import Computation, Instruction, Module

_THROUGH = ("copy", "convert", "bitcast", "copy-done", "copy-start")


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Turns of a `while`, or None where the text does not say.

    Args:
      module: the program.
      computation: the one in which the loop stands; the counter's first value is looked up there.
      loop: the `while`.
    """
    known = loop.find(r'"known_trip_count":\{"n":"?(\d+)')
    if known is not None:
        return int(known)
    condition = module.called(loop, "condition")
    if condition is None:
        return None
    compared = _comparison(module, condition)
    if compared is None:
        return None
    index, limit, direction = compared
    start = _initial(computation, loop, index)
    step = _step(module, module.called(loop, "body"), index)
    distance = limit - start + (1 if direction in ("LE", "GE") else 0) * (1 if step > 0 else -1)
    return max(-(-distance // step), 0) if step else None


def usual_turns(loop: Instruction) -> int | None:
    """Turns of a `while` whose end depends on data, as whoever wrote it named its scope: `about_12_turns`."""
    name = re.search(r"\babout_(\d+)_turns/while", loop.op_name)
    return int(name[1]) if name else None


def _comparison(module: Module, condition: Computation) -> tuple[int, int, str] | None:
    """(index of the counter in the loop's state, constant, direction), the counter on the left."""
    root, scope, outer = condition.root, condition, None
    if root.opcode == "fusion":
        inner = module.called(root, "calls")
        if inner is None:
            return None
        scope, outer, root = inner, root, inner.root
    if root.opcode != "compare" or len(root.operands) != 2:
        return None
    sides = [_resolve(condition, scope, outer, name) for name in root.operands]
    direction = root.find(r"direction=(\w+)") or "LT"
    if sides[0][0] == "constant":
        sides.reverse()
        direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    (left, index), (right, limit) = sides
    return (index, limit, direction) if (left, right) == ("counter", "constant") else None


def _resolve(condition: Computation, scope: Computation, outer: Instruction | None, name: str) -> tuple[str, int]:
    """What an operand of the comparison is: ("constant", value), ("counter", index) or ("unknown", 0)."""
    instruction = scope.find(name)
    while instruction is not None:
        if instruction.opcode == "constant" and _is_integer(instruction.arguments):
            return "constant", int(instruction.arguments)
        if instruction.opcode == "get-tuple-element":
            return "counter", int(instruction.find(r"index=(\d+)") or 0)
        if instruction.opcode == "parameter" and outer is not None:
            # The comparison was fused: what it compares comes in from the condition itself.
            instruction = condition.find(outer.operands[int(instruction.arguments)])
            scope, outer = condition, None
        elif instruction.opcode in _THROUGH and instruction.operands:
            instruction = scope.find(instruction.operands[0])
        else:
            break
    return "unknown", 0


def _initial(computation: Computation, loop: Instruction, index: int) -> int:
    """The counter's first value; 0 where it is not a constant of the surrounding computation."""
    state = computation.find(loop.operands[0]) if loop.operands else None
    if state is None or state.opcode != "tuple" or index >= len(state.operands):
        return 0
    value = computation.find(state.operands[index])
    while value is not None and value.opcode in _THROUGH and value.operands:
        value = computation.find(value.operands[0])
    if value is not None and value.opcode == "constant" and _is_integer(value.arguments):
        return int(value.arguments)
    return 0


def _step(module: Module, body: Computation | None, index: int) -> int:
    """What the counter grows by in a turn; 1 where it is not an addition of a constant."""
    if body is None or body.root.opcode != "tuple" or index >= len(body.root.operands):
        return 1
    value = body.find(body.root.operands[index])
    if value is None or value.opcode not in ("add", "subtract"):
        return 1
    sign = -1 if value.opcode == "subtract" else 1
    for operand in body.operands(value):
        if operand.opcode == "constant" and _is_integer(operand.arguments):
            return sign * int(operand.arguments)
    return 1


def _is_integer(text: str) -> bool:
    return text.strip().lstrip("-").isdigit()
