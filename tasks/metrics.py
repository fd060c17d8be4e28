"""What supervised tasks are measured by: functions of (targets, predictions), in per cent as in T5."""

from __future__ import annotations

import decimal
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_FINAL = "####"


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """{"exact_match": per cent of predictions equal to their target, but for blanks at the ends}."""
    return _percent([target.strip() == said.strip() for target, said in zip(targets, predictions, strict=True)])


def exact_match_number(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """{"exact_match": per cent of predictions whose final number is the target's}, as GSM8K is scored.

    Raises:
      ValueError: a target without a number.
    """
    right = []
    for target, said in zip(targets, predictions, strict=True):
        expected = final_number(target)
        if expected is None:
            raise ValueError(f"the target has no number: {target[-60:]!r}")
        right.append(final_number(said) == expected)
    return _percent(right)


def final_number(text: str) -> decimal.Decimal | None:
    """The first number after the last `####`, or, where there is none, the last number of the text.

    `1,000` and `1000.0` are the same number.
    """
    _, mark, after = text.rpartition(_FINAL)
    numbers = _NUMBER.findall(after if mark else text)
    if not numbers:
        return None
    return decimal.Decimal((numbers[0] if mark else numbers[-1]).replace(",", ""))


def _percent(right: Sequence[bool]) -> dict[str, float]:
    return {"exact_match": 100.0 * sum(right) / len(right) if right else 0.0}
