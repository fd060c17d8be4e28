"""Values as gin text, and macros put in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from t5x_scale.config.configuration import Binding, Configurable, Configuration, Reference, is_macro, is_required
from t5x_scale.config.signature import short_name
from t5x_scale.config.types import UNKNOWN


def macro_binding(configuration: Configuration, reference: Reference) -> Binding | None:
    """The binding in force that a `%MACRO` reads."""
    return configuration.merged("gin.macro", tuple(reference.scopes)).get("value")


def expand(configuration: Configuration, value: Any, undefined: Callable[[str], Any] = lambda name: UNKNOWN) -> Any:
    """`value` with every macro replaced by what it stands for. There must be no cycle (`reach` checks).

    Args:
      configuration: where the macros are defined.
      value: a literal, a reference, or containers of them.
      undefined: what to put for a macro without a value, given its name.
    """
    if is_required(value):
        return undefined("gin.REQUIRED")
    if isinstance(value, Reference) and value.evaluate and is_macro(value.configurable):
        binding = macro_binding(configuration, value)
        if binding is None or is_required(binding.value):
            return undefined("/".join(value.scopes))
        return expand(configuration, binding.value, undefined)
    if isinstance(value, dict):
        return {
            expand(configuration, key, undefined): expand(configuration, item, undefined) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(expand(configuration, item, undefined) for item in value)
    return value


def to_text(value: Any, name_of: Callable[[Configurable], str] = lambda c: short_name(c.wrapped)) -> str:
    """`value` as gin text in one line; `name_of` says how to call a configurable."""
    if isinstance(value, Reference):
        path = "/".join(value.scopes)
        if value.evaluate and value.configurable.selector in ("gin.macro", "gin.constant"):
            return f"%{path}"
        name = value.configurable.selector if value.configurable.module == "gin" else name_of(value.configurable)
        return f"@{path + '/' if path else ''}{name}{'()' if value.evaluate else ''}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_text(k, name_of)}: {to_text(v, name_of)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(to_text(item, name_of) for item in value) + "]"
    if isinstance(value, tuple):
        inside = ", ".join(to_text(item, name_of) for item in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    return repr(value)
