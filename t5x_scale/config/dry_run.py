"""The resolved configuration as text: what one command will receive, and what it will not use."""

from __future__ import annotations

from typing import Any

from t5x_scale.config.configuration import (
    Configurable,
    Configuration,
    Reference,
    Scope,
    binding_name,
    described,
    is_builtin,
)
from t5x_scale.config.reach import Call, Reached
from t5x_scale.config.signature import MISSING, PROVIDED, Parameter, full_name, parameters, short_name
from t5x_scale.config.values import expand, to_text


class _Undefined:
    def __init__(self, name: str):
        self._name = name

    def __repr__(self) -> str:
        return f"%{self._name}"


def resolved_text(configuration: Configuration, command: str, reached: Reached) -> str:
    """Every function and class that `command` reaches, with all its parameters; macros are expanded.

    Ends in no newline. Where a parameter is not bound its default stands, marked so.
    """
    names = _names(reached)
    blocks: dict[Call, str] = {}
    for call in reached.calls:
        configurable = reached.configurables[call.selector]
        shown = Call(call.selector, _bound_part(configuration, call))
        if not is_builtin(configurable) and shown not in blocks:
            blocks[shown] = _block(configuration, shown, configurable, names)
    return "\n\n".join([f"# Resolved configuration of t5x_scale {command}", *blocks.values()])


def _bound_part(configuration: Configuration, call: Call) -> Scope:
    """The part of a call's scope that makes a difference: a macro's name is a scope too, and seldom bound."""
    depths = [history[-1].key.scope for history in configuration.applying(call.selector, call.scope)]
    return tuple(depths[-1].split("/")) if depths and depths[-1] else ()


def unused_text(configuration: Configuration, command: str, reached: dict[str, Reached]) -> str:
    """Bindings that `command` does not use, with who does, and what other commands lack; "" when there is none."""
    lines = []
    for binding in configuration.in_force():
        users = [name for name, found in reached.items() if binding.key in found.keys]
        if command in users:
            continue
        why = f"used by {', '.join(users)}" if users else "what used it was overridden"
        lines.append(f"{described(binding)} = {to_text(binding.value)}  # {why}")
    for name, found in reached.items():
        if name != command:
            lines += [f"%{macro} is not defined  # needed by {name}" for macro in found.undefined]
            lines += [f"{binding_name(binding)} is REQUIRED  # needed by {name}" for binding in found.required]
    return "\n".join([f"# Not used by t5x_scale {command}", *dict.fromkeys(lines)]) if lines else ""


def _block(configuration: Configuration, call: Call, configurable: Configurable, names: dict[str, str]) -> str:
    def name_of(target: Configurable) -> str:
        return names.get(target.selector) or short_name(target.wrapped)

    bound = configuration.merged(call.selector, call.scope)
    prefix = "/".join((*call.scope, ""))
    lines = [f"{prefix}{name_of(configurable)}:"]
    for parameter in parameters(configurable.wrapped).values():
        if parameter.name in bound:
            value = expand(configuration, bound[parameter.name].value, _Undefined)
            lines.append(f"    {parameter.name} = {to_text(value, name_of)}")
        elif parameter.name not in PROVIDED and parameter.default is not MISSING:
            lines.append(f"    {parameter.name} = {_default(parameter)}  # default")
    return "\n".join(lines)


def _default(parameter: Parameter) -> str:
    value: Any = parameter.default
    if callable(value) and not isinstance(value, Reference) and hasattr(value, "__qualname__"):
        return short_name(value)
    text = repr(value)
    # The address of an object differs from run to run, and the text should not.
    return f"<{type(value).__name__}>" if " at 0x" in text or text == "<factory>" else text


def _names(reached: Reached) -> dict[str, str]:
    """Short names, longer where two would be the same."""
    short: dict[str, list[str]] = {}
    for selector, configurable in reached.configurables.items():
        short.setdefault(short_name(configurable.wrapped), []).append(selector)
    return {
        selector: name if len(selectors) == 1 else full_name(reached.configurables[selector].wrapped)
        for name, selectors in short.items()
        for selector in selectors
    }
