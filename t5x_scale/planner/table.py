"""A plan as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from t5x_scale.planner.amounts import count_text
from t5x_scale.planner.choices import NO_DOMAIN, Choice, Opinion

_MARK = "*"


def to_text(choices: Sequence[Choice], warnings: Sequence[str], title: str, explain: bool = False) -> str:
    """The numbers, what each law says about the loss, and what is extrapolated; with `explain` reasons and all laws."""
    width = max(len(choice.name) for choice in choices) + 2
    lines = [title, ""]
    for choice in choices:
        lines.append(f"  {choice.name:<{width}}{choice.text}{_flag(choice)}")
        if explain:
            lines.append(f"  {'':<{width}}because: {choice.reason}")
            lines += [f"  {'':<{width}}{line}" for line in opinions_table(choice)]
            lines.append("")
    if not explain:
        loss = next((choice for choice in choices if choice.name == "expected loss"), None)
        if loss is not None:
            lines += ["", "What each law expects", *(f"  {line}" for line in opinions_table(loss))]
    if warnings:
        lines += ["", "Mind", *(f"  {line}" for line in warnings)]
    return "\n".join(lines).rstrip()


def opinions_table(choice: Choice) -> list[str]:
    """A row a law: what it says, how sure we are of it, where it extrapolates; the followed one is marked."""
    rows = [_row(opinion, choice) for opinion in choice.opinions]
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def range_text(outside: Sequence[str]) -> str:
    """Where a law stands that these lines are about."""
    if tuple(outside) == (NO_DOMAIN,):
        return NO_DOMAIN
    return f"extrapolates: {'; '.join(outside)}" if outside else "within its range"


def _row(opinion: Opinion, choice: Choice) -> tuple[str, ...]:
    mark = _MARK if opinion.law == choice.law else " "
    return (
        mark,
        opinion.law,
        _value(opinion.value),
        opinion.unit,
        opinion.confidence,
        range_text(opinion.outside),
    )


def _value(value: float) -> str:
    return count_text(value) if value >= 1e3 else f"{value:.4g}"


def _flag(choice: Choice) -> str:
    """Said beside the number: nobody reads footnotes only."""
    return f"  [{', '.join(choice.doubts)}]" if choice.doubts else ""
