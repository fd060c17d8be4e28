"""Describes functions by name, arguments and a hash of their code, so that a changed one can be noticed."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable
from typing import Any


def describe_function(function: Callable) -> str:
    """`module.name#hash(arguments)`; the same in every process that runs the same code."""
    if isinstance(function, functools.partial):
        given = [describe_value(value) for value in function.args]
        given += [f"{key}={describe_value(value)}" for key, value in sorted(function.keywords.items())]
        return f"{describe_function(function.func)}({', '.join(given)})"
    function = inspect.unwrap(function)
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    try:
        code = inspect.getsource(function)
    except (OSError, TypeError):  # A callable object, or code typed at a prompt.
        return name
    return f"{name}#{hashlib.sha256(code.encode()).hexdigest()[:12]}"


def describe_value(value: Any) -> str:
    """A function as `describe_function` has it, any other value as its `repr` without memory addresses."""
    if inspect.isroutine(value) or isinstance(value, functools.partial):
        return describe_function(value)
    return without_addresses(repr(value))


def without_addresses(text: str) -> str:
    """`text` without the memory addresses a `repr` may hold, which change from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
