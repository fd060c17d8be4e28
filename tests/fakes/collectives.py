"""Collectives of an optimised program, each counted as often as it runs: trip counts of loops multiplied."""

import collections
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-]*)\(")
_CALLED = re.compile(r"(body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def count_collectives(text: str, kinds: tuple[str, ...] = KINDS) -> collections.Counter:
    """`{(kind, shapes of the result): times}` of an HLO module's text; an asynchronous pair counts once.

    `kinds` may be other operations, such as `dot`.
    """
    computations, entry, lines = {}, None, []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            lines = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("  "):
            lines.append(line)
    counts = collections.Counter()

    def visit(name, times):
        for line in computations.get(name, ()):
            operation = _OPERATION.match(line)
            if operation is None:
                continue
            shapes, kind = re.sub(r"\{[^}]*\}", "", operation[1]), operation[2].removesuffix("-start")
            if kind in kinds:
                assert times, f"{kind} in a loop of unknown length"
                counts[kind, shapes] += times
            known = _TRIPS.search(line)
            trips = times if kind != "while" else times * int(known[1]) if known else 0
            called = [match[2] for match in _CALLED.finditer(line)]
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for computation in called:
                visit(computation, trips)

    visit(entry, 1)
    return counts
