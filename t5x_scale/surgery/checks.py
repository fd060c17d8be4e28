"""Checks of a surgery's settings, with errors that name the field."""

from __future__ import annotations

import math
from typing import Any

from t5x_scale.core.checks import is_integer
from t5x_scale.core.errors import UserError


def check_at_least(owner: Any, least: int, *fields: str) -> None:
    """Raises a UserError unless the fields of `owner` are whole numbers of `least` or more."""
    for field in fields:
        value = getattr(owner, field)
        if not is_integer(value) or value < least:
            raise UserError(f"{type(owner).__name__}.{field} is {value!r}; expected a whole number of {least} or more")


def check_range(owner: Any, low: float, high: float, *fields: str) -> None:
    """Raises a UserError unless the fields of `owner` are numbers from `low` to `high`, both included."""
    for field in fields:
        value = getattr(owner, field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            bound = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of {low:g} or above"
            raise UserError(f"{type(owner).__name__}.{field} is {value!r}; expected a number {bound}")


def check_one_of(owner: Any, first: str, second: str) -> None:
    """Raises a UserError unless exactly one of two fields of `owner` is given."""
    if (getattr(owner, first) is None) == (getattr(owner, second) is None):
        raise UserError(f"{type(owner).__name__} needs one of {first} and {second}, and not both")


def check_divides(owner: Any, field: str, size: int, what: str) -> None:
    """Raises a UserError unless a field of `owner` divides `size`; the error names the nearest number that does."""
    value = getattr(owner, field)
    if size % value:
        nearest = min((n for n in range(1, size + 1) if size % n == 0), key=lambda n: abs(n - value))
        raise UserError(
            f"{type(owner).__name__}.{field} is {value}, which does not divide {what} {size}; {nearest} does"
        )
