"""The nearest right name, for names made of parts: `train_eval/trainer.Trainer.steps`, `TRAIN_STEPS`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_THRESHOLD = 0.6
# A dot within a number is none: 1.4b.
_SEPARATORS = re.compile(r"(?:[/_\-]|(?<!\d)\.|\.(?!\d))+")
# Numbers, alone or as sizes with what they count in: 64, 8b, 350m.
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmbt]?)")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def nearest(name: str, choices: Iterable[str], limit: int = 2) -> list[str]:
    """The choices nearest to `name`, best first; empty when nothing is near.

    A part counts as well as the whole: `STESP` is near `TRAIN_STEPS`, which plain `difflib` does not see.
    """
    scored = sorted(((_nearness(name, choice), choice) for choice in set(choices) if choice != name), reverse=True)
    if not scored or scored[0][0] < _THRESHOLD:
        return []
    return [choice for score, choice in scored[:limit] if score >= max(_THRESHOLD, scored[0][0] - 0.05)]


def hint(name: str, choices: Iterable[str]) -> str:
    """`" (did you mean 'a' or 'b'?)"`, or `""` when nothing is near."""
    near = nearest(name, choices)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def _nearness(name: str, choice: str) -> float:
    parts, others = _SEPARATORS.split(name.lower()), _SEPARATORS.split(choice.lower())
    # What is the same in both says nothing about how alike the rest is: `parts.Lion` is not near `parts.Model`.
    parts, others = [p for p in parts if p not in others], [o for o in others if o not in parts]
    if not parts or not others:
        # One that lacks a size is farther than one of any other size: palm/350m is palm/8b sooner than palm/palm.
        left = _THRESHOLD if any(_to_number(part) is not None for part in (*parts, *others)) else 0.75
        return 1.0 if not parts and not others else left
    by_part = sum(max(_ratio(part, other) for other in others) for part in parts) / len(parts)
    # A part that fits is less convincing than a whole that fits.
    return max(_ratio(".".join(parts), ".".join(others)), 0.85 * by_part)


def _ratio(a: str, b: str) -> float:
    sizes = [_to_number(text) for text in (a, b)]
    if None not in sizes:
        # All numbers are of one kind, and near as they are in size: v5p_63 is v5p_64, and not v5e_16; 9b is 8b.
        small, large = sorted(sizes)
        return _THRESHOLD + (1 - _THRESHOLD) * (small / large if large else 1.0)
    return difflib.SequenceMatcher(None, a, b).ratio()


def _to_number(text: str) -> float | None:
    match = _SIZE.fullmatch(text)
    return None if match is None else float(match[1]) * _UNITS[match[2]]
