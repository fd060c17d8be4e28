"""What a configurable function or class may be given: its parameters, their annotations and defaults."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

# The root receives these from `main`; Linen modules receive theirs from Flax.
PROVIDED = ("config_text", "command_line")
_FLAX = ("parent", "name")
MISSING = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter that gin may set. `annotation` and `default` are `MISSING` where there is none."""

    name: str
    annotation: Any
    default: Any


@functools.cache
def parameters(function: Callable) -> dict[str, Parameter]:
    """The named parameters of a function, or of a class's constructor, in order.

    `*args`, `**kwargs` and positional-only parameters are left out: what a name means there cannot be checked.
    """
    target = _constructor(function) if inspect.isclass(function) else function
    try:
        found = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # Some built-in callables have no signature.
        return {}
    if inspect.isclass(function):
        found = found[1:]  # self or cls
    hidden = _FLAX if _is_linen(function) else ()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    hints = _annotations(function, target)
    return {
        parameter.name: Parameter(parameter.name, hints.get(parameter.name, MISSING), parameter.default)
        for parameter in found
        if parameter.kind in kinds and parameter.name not in hidden
    }


def full_name(function: Callable) -> str:
    """`t5x_scale.optim.adafactor.Adafactor`."""
    module = getattr(function, "__module__", None) or "?"
    return f"{module}.{_qualified_name(function)}"


def short_name(function: Callable) -> str:
    """`adafactor.Adafactor`: the last part of the module and the name, as gin files write it."""
    module = (getattr(function, "__module__", None) or "?").rsplit(".", 1)[-1]
    return f"{module}.{_qualified_name(function)}"


def _qualified_name(function: Callable) -> str:
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or repr(function)
    return name.rsplit("<locals>.", 1)[-1]


def _constructor(cls: type) -> Callable:
    for base in cls.__mro__:
        for name in ("__init__", "__new__"):
            if name in base.__dict__:
                return getattr(base, name)
    return cls


def _is_linen(function: Any) -> bool:
    return inspect.isclass(function) and any(
        base.__module__.startswith("flax.linen") and base.__name__ == "Module" for base in function.__mro__
    )


def _annotations(function: Callable, target: Callable) -> dict[str, Any]:
    """Evaluated annotations. One that cannot be evaluated (imported for type checkers only) is left out."""
    hints: dict[str, Any] = {}
    for owner, namespace in _annotation_owners(function, target):
        for name, annotation in (getattr(owner, "__dict__", {}).get("__annotations__") or _own(owner)).items():
            if not isinstance(annotation, str):
                hints[name] = annotation
                continue
            try:
                hints[name] = eval(annotation, namespace)
            except Exception:
                hints.pop(name, None)
    return hints


def _annotation_owners(function: Callable, target: Callable) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Where annotations stand, and the names that are known there; the last to speak wins."""
    if inspect.isclass(function) and dataclasses.is_dataclass(function):
        # The generated __init__ of an inherited field knows the wrong module; the class that wrote it does not.
        for base in reversed(function.__mro__):
            yield base, vars(sys.modules.get(base.__module__, object)) if base.__module__ in sys.modules else {}
    else:
        inner = inspect.unwrap(target)
        yield inner, getattr(inner, "__globals__", {})


def _own(owner: Any) -> dict[str, Any]:
    return {} if inspect.isclass(owner) else getattr(owner, "__annotations__", {}) or {}
