"""Checks of the fields of settings: errors that name the field, its value and what it may be."""

from __future__ import annotations

import re
import sys
from typing import Any

from t5x_scale.core.errors import UserError

# Thirty years: what waits takes no longer times.
_MAX_SECONDS = 1e9
_ADDRESS = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", re.ASCII)


def is_integer(value: object) -> bool:
    """Whether the value is a whole number, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """Whether the value is a number, not a bool, that a float can hold and that is neither infinite nor NaN."""
    return (is_integer(value) or isinstance(value, float)) and abs(value) <= sys.float_info.max


def check_whole(owner: Any, least: int, *fields: str, may_be_none: bool = False) -> None:
    """Raises a UserError unless the fields of `owner` are whole numbers of `least` or more, or None if they may be."""
    for field in fields:
        value = getattr(owner, field)
        if not (may_be_none and value is None) and not (is_integer(value) and value >= least):
            _refuse(owner, field, f"a whole number, {least} or more", may_be_none)


def check_above(owner: Any, bound: float, *fields: str) -> None:
    """Raises a UserError unless the fields of `owner` are finite numbers above `bound`."""
    for field in fields:
        value = getattr(owner, field)
        if not (is_finite(value) and value > bound):
            _refuse(owner, field, f"a finite number above {bound:g}")


def check_seconds(owner: Any, *fields: str, may_be_none: bool = False) -> None:
    """Raises a UserError unless the fields of `owner` are times that can be waited for, or None if they may be."""
    for field in fields:
        value = getattr(owner, field)
        if not (may_be_none and value is None) and not (is_finite(value) and 0 < value <= _MAX_SECONDS):
            _refuse(owner, field, f"a number of seconds above 0, at most {_MAX_SECONDS:g}", may_be_none)


def check_kind(owner: Any, kind: type, *fields: str, may_be_none: bool = False) -> None:
    """Raises a UserError unless the fields of `owner` are of a class, or None if they may be."""
    for field in fields:
        value = getattr(owner, field)
        if not (may_be_none and value is None) and not isinstance(value, kind):
            _refuse(owner, field, "True or False" if kind is bool else f"a {kind.__name__}", may_be_none)


def check_address(owner: Any, field: str) -> None:
    """Raises a UserError unless the field of `owner` is host:port, or None."""
    value = getattr(owner, field)
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if value is not None and not (match and 1 <= int(match[2]) <= 65535):
        _refuse(owner, field, "host:port, such as 10.0.0.1:8080, with a port from 1 to 65535", may_be_none=True)


def _refuse(owner: Any, field: str, expected: str, may_be_none: bool = False) -> None:
    name, none = f"{type(owner).__name__}.{field}", ", or None" if may_be_none else ""
    raise UserError(f"{name} is {getattr(owner, field)!r}; it must be {expected}{none}")
