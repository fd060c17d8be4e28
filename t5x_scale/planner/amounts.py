"""Amounts as people write and read them: `8e9`, `8b`, `1.4T`."""

from __future__ import annotations

import math
import re

from t5x_scale.core.errors import UserError

_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
# No amount of anything on Earth lies outside, and no law leaves the range of a float within.
_SMALLEST, _LARGEST = 1e-9, 1e45
# Of tokens in a row or a vocabulary.
_MOST = 1e12
_AMOUNT = re.compile(r"([-+]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([kmbgt]?)", re.IGNORECASE)

Amount = float | int | str


def parse_amount(name: str, value: Amount, example: str = "8e9 or 8b") -> float:
    """The number that a flag means.

    Args:
      name: of the flag, for the message.
      value: a number, or text with a suffix of `k m b g t`.
      example: what could have been written.

    Raises:
      UserError: it is not a positive, finite number, or one that is the amount of nothing.
    """
    number = _number(value)
    if number is None or not math.isfinite(number) or number <= 0:
        raise UserError(f"--{name} is {value!r}; expected a positive number, such as {example}")
    if not _SMALLEST <= number <= _LARGEST:
        raise UserError(f"--{name} is {value!r}; expected one from {_SMALLEST:g} to {_LARGEST:g}, such as {example}")
    return number


def parse_whole(name: str, value: Amount) -> int:
    """The number of tokens, at least two, that a flag means.

    Raises:
      UserError: it is no such number.
    """
    number = _number(value)
    if number is None or not 2 <= number < math.inf or number != int(number):
        raise UserError(f"--{name} is {value}; expected a whole number of tokens from 2 on")
    if number > _MOST:
        raise UserError(f"--{name} is {value}; expected no more tokens than {_MOST:g}")
    return int(number)


def _number(value: Amount) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    match = _AMOUNT.fullmatch(str(value).strip())
    if match is None:
        return None
    return float(re.sub("[_,]", "", match[1])) * _SCALES[match[2].lower()]


def count_text(number: float) -> str:
    """`8.03 B`, three digits and the scale; of what is small or very large the number itself."""
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999.7 million is a billion.
        if number >= scale * 0.9995:
            return f"{number / scale:,.{_decimals(number / scale)}f} {suffix}"
    return f"{number:.4g}"


def bytes_text(number: float) -> str:
    """`12.3 GiB`."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if number >= scale:
            return f"{number / scale:.{_decimals(number / scale)}f} {unit}"
    return f"{number / 1024:.1f} KiB"


def days_text(days: float) -> str:
    """A time in the unit that suits it."""
    for unit, scale in (("years", 365.25), ("days", 1.0), ("hours", 1 / 24), ("minutes", 1 / 1440)):
        if days >= 1.5 * scale:
            return f"{days / scale:,.{_decimals(days / scale)}f} {unit}"
    return f"{days * 86400:.2g} seconds"


def counted(number: int, noun: str) -> str:
    """`1 row`, `1,024 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _decimals(number: float) -> int:
    return max(0, 2 - math.floor(math.log10(max(number, 1.0))))
