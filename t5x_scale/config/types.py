"""Whether a value fits the annotation of the parameter it is bound to.

Only what can be decided without calling anything is decided; an annotation that is not understood accepts all.
An int is fine for a float. A list is not a tuple: frozen configurations are hashed.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import types
import typing
from typing import Any

from t5x_scale.config.configuration import Reference
from t5x_scale.config.nearest import hint
from t5x_scale.config.signature import MISSING, Parameter, short_name

# Stands where a macro is undefined or still REQUIRED: fits everything, and is reported elsewhere.
UNKNOWN = object()
_PLAIN = (bool, int, float, str, bytes, complex, list, tuple, dict, set, frozenset, type(None))
# Libraries whose classes accept literals in place of themselves ("bfloat16" for a dtype).
_LENIENT = ("numpy", "jax", "jaxlib", "ml_dtypes", "flax", "optax")


def mismatch(value: Any, parameter: Parameter) -> str | None:
    """What is wrong with `value` for `parameter` ("expected int, got the string 'a'"), or None.

    Args:
      value: a literal, a reference, or containers of them; macros already expanded.
      parameter: from `signature.parameters`.
    """
    if parameter.annotation is MISSING or (value is None and parameter.default is None):
        return None
    return _check(value, parameter.annotation)


def _check(value: Any, hint_: Any) -> str | None:
    if value is UNKNOWN or hint_ is Any:
        return None
    if hint_ is None:
        hint_ = type(None)
    origin = typing.get_origin(hint_)
    if isinstance(hint_, typing.NewType):
        return _check(value, hint_.__supertype__)
    if origin is typing.Annotated:
        return _check(value, typing.get_args(hint_)[0])
    if origin in (typing.Union, types.UnionType):
        return _check_union(value, typing.get_args(hint_))
    if origin is typing.Literal:
        return _check_choice(value, typing.get_args(hint_))
    if isinstance(value, Reference):
        return _check_reference(value, hint_, origin)
    if origin is not None:
        return _check_container(value, hint_, origin, typing.get_args(hint_))
    if inspect.isclass(hint_):
        return _check_class(value, hint_)
    return None


def _check_union(value: Any, options: tuple) -> str | None:
    problems = [_check(value, option) for option in options]
    if any(problem is None for problem in problems):
        return None
    real = [problem for problem, option in zip(problems, options, strict=True) if option not in (None, type(None))]
    if len(real) == 1:
        return real[0]
    return f"expected {' or '.join(_type_name(option) for option in options)}, got {_value_name(value)}"


def _check_choice(value: Any, choices: tuple) -> str | None:
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return None
    near = hint(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
    return f"expected {' or '.join(map(repr, choices))}, got {_value_name(value)}{near}"


def _check_class(value: Any, cls: type) -> str | None:
    if cls is type:
        return f"expected a class, got {_value_name(value)}: refer to @module.name"
    if cls is float and isinstance(value, int) and not isinstance(value, bool):
        return None
    if isinstance(value, bool) and cls in (int, float, complex):
        return f"expected {cls.__name__}, got {value}"
    if cls.__module__.partition(".")[0] in _LENIENT:
        return None
    if _is_instance(value, cls):
        return None
    if cls is int and isinstance(value, float) and value.is_integer():
        return f"expected int, got the float {value!r}: write {int(value)}"
    if dataclasses.is_dataclass(cls):
        return f"expected {_type_name(cls)}, got {_value_name(value)}: refer to @{short_name(cls)}()"
    return f"expected {_type_name(cls)}, got {_value_name(value)}"


def _check_container(value: Any, hint_: Any, origin: Any, arguments: tuple) -> str | None:
    if origin is collections.abc.Callable or origin is type:
        return f"expected {_type_name(hint_)}, got {_value_name(value)}: refer to @module.name"
    if not inspect.isclass(origin):
        return None
    if isinstance(value, str) and issubclass(origin, collections.abc.Iterable) and arguments[:1] == (str,):
        return f"expected {_type_name(hint_)}, got the string {value!r}: write ({value!r},)"
    if not _is_instance(value, origin):
        return f"expected {_type_name(hint_)}, got {_value_name(value)}"
    if isinstance(value, dict) and len(arguments) == 2:
        pairs = [*((key, arguments[0]) for key in value), *((item, arguments[1]) for item in value.values())]
    elif isinstance(value, tuple) and origin is tuple and arguments[-1:] != (...,):
        if len(value) != len(arguments) and arguments:
            return f"expected {_type_name(hint_)}, got {len(value)} values"
        pairs = list(zip(value, arguments, strict=False))
    elif isinstance(value, (list, tuple)) and arguments:
        pairs = [(item, arguments[0]) for item in value]
    else:
        pairs = []
    return next((f"{problem} in {_value_name(value)}" for item, kind in pairs if (problem := _check(item, kind))), None)


def _check_reference(reference: Reference, hint_: Any, origin: Any) -> str | None:
    target = reference.configurable.wrapped
    name = short_name(target)
    cls = origin or hint_
    wants_function = cls in (collections.abc.Callable, type)
    if not inspect.isclass(cls) or cls is object:
        return None
    if not reference.evaluate:
        if wants_function or _has_call(cls) or getattr(cls, "_is_protocol", False):
            return None
        if cls in _PLAIN or cls.__module__ == "builtins" or _makes(target, cls):
            return f"expected {_type_name(hint_)}, got @{name} itself: write @{name}()"
        return None
    if not inspect.isclass(target) or getattr(cls, "_is_protocol", False):
        return None
    if wants_function:
        return None if _has_call(target) else f"expected {_type_name(hint_)}, got a {name}: write @{name} without ()"
    if cls.__module__.partition(".")[0] in _LENIENT:
        return None
    return None if _is_subclass(target, cls) else f"expected {_type_name(hint_)}, got a {name}"


def _makes(target: Any, cls: type) -> bool:
    """Whether calling `target` gives a `cls`, as far as it says so."""
    if inspect.isclass(target):
        return _is_subclass(target, cls)
    try:
        made = typing.get_type_hints(target).get("return")
    except Exception:
        return False
    return inspect.isclass(made) and _is_subclass(made, cls)


def _has_call(cls: type) -> bool:
    return any("__call__" in base.__dict__ for base in getattr(cls, "__mro__", ()))


def _is_instance(value: Any, cls: type) -> bool:
    try:
        return isinstance(value, cls)
    except TypeError:  # A protocol that cannot be checked at run time.
        return True


def _is_subclass(cls: type, parent: type) -> bool:
    try:
        return issubclass(cls, parent)
    except TypeError:
        return True


def _type_name(hint_: Any) -> str:
    if hint_ in (None, type(None)):
        return "None"
    if inspect.isclass(hint_) and typing.get_origin(hint_) is None:
        return hint_.__name__ if hint_.__module__ == "builtins" else short_name(hint_)
    return str(hint_).replace("typing.", "").replace("collections.abc.", "")


def _value_name(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, Reference):
        return repr(value)
    return f"the {'string' if isinstance(value, str) else type(value).__name__} {value!r}"
