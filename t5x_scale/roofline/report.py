"""A report as text for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from t5x_scale.roofline.predict import Report

_KINDS = {"matmul": "matrix products", "kernel": "attention and other kernels", "other": "everything else"}


def to_text(report: Report, rows: int = 10) -> str:
    """Tables of what a step takes; `rows` is how many lines the long ones have."""
    parts = [_summary(report), _collectives(report, rows)]
    if report.memory is not None:
        parts.append(_memory(report))
    parts += [_slowest(report, rows), _largest(report, rows), _copied(report, rows), _notes(report)]
    return "\n\n".join(part for part in parts if part)


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain values; seconds, bytes and shares."""
    return json.loads(json.dumps(dataclasses.asdict(report)))


def _summary(report: Report) -> str:
    mesh = " x ".join(f"{name}={size}" for name, size in report.mesh.items()) or "one device"
    lines = [f"Predicted step on {report.num_chips} x {report.chip}, {mesh}"]
    facts = [("step", f"{_seconds(report.seconds)}")]
    facts += [(f"  {_KINDS.get(kind, kind)}", _share(seconds, report)) for kind, seconds in report.busy.items()]
    facts.append(("  collectives, exposed", _share(report.exposed, report)))
    if report.host_exposed:
        facts.append(("  copies to and from the host, exposed", _share(report.host_exposed, report)))
    if report.mfu is not None and report.mfu_causal is not None and report.tokens_per_second is not None:
        facts.append(("MFU", f"{_percent(report.mfu)} (full attention), {_percent(report.mfu_causal)} (causal)"))
        per_chip = report.tokens_per_second / report.num_chips
        facts.append(("tokens a second", f"{report.tokens_per_second:,.0f} ({per_chip:,.0f} a chip)"))
    facts.append(("HFU", f"{_percent(report.hfu)} (what really runs, recomputation included)"))
    facts.append(("bound by", report.bound))
    width = max(len(name) for name, _ in facts) + 2
    return "\n".join(lines + [f"  {name:<{width}}{value}" for name, value in facts])


def _collectives(report: Report, rows: int) -> str:
    if not report.collectives:
        return ""
    header = (
        "collective",
        "over",
        "links",
        "devices",
        "runs",
        "a step",
        "on the links",
        "exposed",
        "hidden",
        "for example",
    )
    table = [
        (
            row.kind,
            "+".join(row.axes) or "-",
            row.links,
            f"{row.size}" + (f" in {row.slices} slices" if row.slices > 1 else ""),
            f"{row.count:,.0f}",
            _bytes(row.payload),
            _seconds(row.seconds),
            _seconds(row.exposed),
            _percent(row.hidden),
            _tail(row.example),
        )
        for row in report.collectives[:rows]
    ]
    return "Collectives\n" + _table(header, table)


def _memory(report: Report) -> str:
    memory = report.memory
    table = [
        ("state and batch", _bytes(memory.state)),
        ("results beyond the donated state", _bytes(memory.results)),
        ("temporaries", _bytes(memory.temporaries)),
        ("  of them stacked for the backward pass", _bytes(memory.stacked)),
        ("program", _bytes(memory.program)),
        ("a device in all", _bytes(memory.total)),
    ]
    if memory.host:
        table.append(("in the host's memory", _bytes(memory.host)))
    return "Memory of a device\n" + _table(("", "bytes"), table)


def _slowest(report: Report, rows: int) -> str:
    table = [
        (row.name, row.kind, f"{row.count:,.0f}", _seconds(row.seconds), _percent(row.efficiency), _tail(row.op_name))
        for row in report.slowest[:rows]
    ]
    return "What takes longest\n" + _table(("instruction", "kind", "runs", "a step", "of peak", "for"), table)


def _largest(report: Report, rows: int) -> str:
    table = [(row.array, _bytes(row.bytes), row.kind, _tail(row.op_name)) for row in report.largest[:rows]]
    return "Largest arrays of a device\n" + _table(("array", "bytes", "made by", "for"), table)


def _copied(report: Report, rows: int) -> str:
    if not report.copied:
        return "No large argument lies on several devices alike."
    table = [(row.name, row.array, _bytes(row.bytes), f"{row.copies}") for row in report.copied[:rows]]
    return "Arguments that several devices hold alike\n" + _table(("argument", "array", "bytes", "copies"), table)


def _notes(report: Report) -> str:
    return "\n".join(f"Note: {note}." for note in report.notes)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in [header, *rows]]  # fmt: skip
    return "\n".join(lines)


def _share(seconds: float, report: Report) -> str:
    return f"{_seconds(seconds)}  {_percent(seconds / report.seconds if report.seconds else 0.0)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _seconds(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.2f} {unit}"
    return f"{seconds * 1e6:.0f} us"


def _bytes(count: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 1024:.1f} KiB"


def _tail(path: str, parts: int = 3) -> str:
    return "/".join(path.split("/")[-parts:])
