"""The nearest right name, for names made of parts: `train_eval/trainer.Trainer.steps`, `TRAIN_STEPS`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_THRESHOLD = 0.6
_SEPARATORS = re.compile(r"[/._\-]+")


def nearest(name: str, choices: Iterable[str], limit: int = 2) -> list[str]:
    """The choices nearest to `name`, best first; empty when nothing is near.

    A part counts as well as the whole: `STESP` is near `TRAIN_STEPS`, which plain `difflib` does not see.
    """
    scored = sorted(((_nearness(name, choice), choice) for choice in set(choices) if choice != name), reverse=True)
    if not scored or scored[0][0] < _THRESHOLD:
        return []
    return [choice for score, choice in scored[:limit] if score >= max(_THRESHOLD, scored[0][0] - 0.1)]


def hint(name: str, choices: Iterable[str]) -> str:
    """`" (did you mean 'a' or 'b'?)"`, or `""` when nothing is near."""
    near = nearest(name, choices)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def _nearness(name: str, choice: str) -> float:
    name, choice = name.lower(), choice.lower()
    parts, choice_parts = _SEPARATORS.split(name), _SEPARATORS.split(choice)
    by_part = sum(max(_ratio(part, other) for other in choice_parts) for part in parts) / len(parts)
    # A part that fits is a little less convincing than a whole that fits.
    return max(_ratio(name, choice), 0.9 * by_part)


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
