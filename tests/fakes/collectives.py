"""Collectives of an optimised program, each counted as often as it runs: trip counts of loops multiplied."""

import collections

from t5x_scale.roofline.hlo import parse
from t5x_scale.roofline.loops import trip_count

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def count_collectives(text: str, kinds: tuple[str, ...] = KINDS) -> collections.Counter:
    """`{(kind, shapes of the result): times}` of an HLO module's text; an asynchronous pair counts once.

    `kinds` may be other operations, such as `dot`.
    """
    module, counts = parse(text), collections.Counter()

    def visit(computation, times):
        for instruction in computation.instructions:
            kind = instruction.opcode.removesuffix("-start")
            if kind in kinds:
                assert times, f"{kind} in a loop of unknown length"
                counts[kind, _shapes(instruction)] += times
            turns = (trip_count(module, computation, instruction) or 0) if kind == "while" else 1
            for role in instruction.called:
                called = module.called(instruction, role)
                if role != "condition" and called is not None:
                    visit(called, times * turns)

    visit(module.main, 1)
    return counts


def _shapes(instruction) -> str:
    arrays = instruction.arrays
    if instruction.opcode.endswith("-start"):
        # Its operands stand before its results, and maybe two words behind.
        arrays = [array for array in arrays if array.dims]
        arrays = arrays[len(arrays) // 2 :]
    return str(arrays[0]) if len(arrays) == 1 else f"({', '.join(map(str, arrays))})"
