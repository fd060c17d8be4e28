"""An architecture as the text of a gin file, such as a person would write for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from t5x_scale.models.architecture import Architecture
from t5x_scale.models.composition import Part, compose
from t5x_scale.models.config import ModelConfig

_REMAT = """\
# What the backward pass keeps of a layer: none (everything), dots, minimal, attention or full (only its input).
REMAT = "full"
"""


class _Macro(str):
    """A macro of the gin file, by name."""


def to_gin(architecture: Architecture, comment: str = "") -> str:
    """The gin file of a model: like those of `gin/models`, with its sizes, in place of one of them.

    Everything is drawn from N(0, 0.02^2); dtypes are in it where they are not the default, so that a machine's file
    can set them.

    Args:
      architecture: what the decoder computes.
      comment: what stands at the top of the file, without the marks of a comment.

    Raises:
      UserError: learned positions without a length, or experts with biases.
    """
    model = compose(architecture, remat=_Macro("REMAT"))
    bindings = dict(_bindings(model))
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    sections = [
        head + "from __gin__ import dynamic_registration\n" + "".join(sorted({*map(_import, bindings)})),
        _REMAT,
        f"MODEL = {_render(model)}()\n" + _section(model.factory, bindings.pop(model.factory)),
        *(_section(factory, settings) for factory, settings in bindings.items() if settings),
    ]
    return "\n".join(sections)


def _bindings(part: Any) -> Iterator[tuple[type, Mapping[str, Any]]]:
    """Every class with its settings, owners before what they own. An architecture gives a class only one meaning."""
    if isinstance(part, Part):
        factory, settings = part.factory, part.settings
    elif dataclasses.is_dataclass(part):
        factory, settings = type(part), _fields(part)
    else:
        return
    yield factory, settings
    for value in settings.values():
        yield from _bindings(value)


def _fields(value: Any) -> dict[str, Any]:
    """The fields of an object that gin makes; of a model's configuration only those that differ from their default."""
    found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not isinstance(value, ModelConfig):
        return found
    defaults = {field.name: field.default for field in dataclasses.fields(value)}
    return {name: setting for name, setting in found.items() if setting != defaults[name]}


def _section(factory: type, settings: Mapping[str, Any]) -> str:
    lines = [f"{name} = {_render(value)}" for name, value in settings.items()]
    if len(lines) == 1:
        return f"{_name(factory)}.{lines[0]}\n"
    return f"{_name(factory)}:\n" + "".join(f"    {line}\n" for line in lines)


def _render(value: Any) -> str:
    if isinstance(value, Part):
        return f"@{_name(value.factory)}"
    if isinstance(value, _Macro):
        return f"%{value}"
    if dataclasses.is_dataclass(value):
        return f"@{_name(type(value))}()"
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _name(factory: type) -> str:
    return f"{factory.__module__.rsplit('.', 1)[1]}.{factory.__name__}"


def _import(factory: type) -> str:
    package, module = factory.__module__.rsplit(".", 1)
    return f"from {package} import {module}\n"
