"""Every binding ever made, with where it was made: what parsing produces and the checks read.

gin itself keeps only the last value of a binding, and not where it came from. Both are kept here, because a
binding that an overriding value made useless (another optimiser than the file's) is not a mistake, while one
that no value ever led to is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from gin import config as gin_config

from t5x_scale.config.signature import full_name, short_name

Configurable = gin_config.Configurable
Reference = gin_config.ConfigurableReference
Scope = tuple[str, ...]


class Key(NamedTuple):
    """What a binding sets: `scope` ("" or "a/b"), gin's complete selector, the name of the parameter."""

    scope: str
    selector: str
    argument: str


@dataclasses.dataclass(frozen=True)
class Binding:
    """One assignment.

    Attributes:
      key: what is set.
      configurable: the function or class whose parameter it is.
      value: as gin parsed it, references and all.
      origin: "file:line", or the flag.
      source: identifies the file; all flags are one source.
      segment: its place in time: counts up whenever the source changes, so an include splits the file around it.
    """

    key: Key
    configurable: Configurable
    value: Any
    origin: str
    source: str
    segment: int = 0


@dataclasses.dataclass
class Configuration:
    """All assignments in order.

    Attributes:
      bindings: every assignment of each key, in order.
      modules: the symbols that the files imported, name -> import statements.
      trusted: modules that files may import beside those they always may (see `config.trust`).
    """

    bindings: dict[Key, list[Binding]] = dataclasses.field(default_factory=dict)
    modules: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    trusted: tuple[str, ...] = ()
    _latest: Binding | None = None

    def add(self, binding: Binding) -> None:
        """Appends an assignment; the last one of a key is in force."""
        segment = 0
        if self._latest is not None:
            segment = self._latest.segment + (binding.source != self._latest.source)
        self._latest = dataclasses.replace(binding, segment=segment)
        self.bindings.setdefault(binding.key, []).append(self._latest)

    def in_force(self) -> Iterator[Binding]:
        """The last assignment of every key, in the order the keys first appeared."""
        return (history[-1] for history in self.bindings.values())

    def applying(self, selector: str, scope: Scope) -> Iterator[list[Binding]]:
        """The histories of all bindings that gin applies to a call in `scope`, outer scopes first."""
        prefixes = {"/".join(scope[:end]): end for end in range(len(scope) + 1)}
        found = [key for key in self.bindings if key.selector == selector and key.scope in prefixes]
        return (self.bindings[key] for key in sorted(found, key=lambda key: prefixes[key.scope]))

    def merged(self, selector: str, scope: Scope) -> dict[str, Binding]:
        """What a call in `scope` receives: parameter -> the assignment in force in the innermost scope."""
        return {history[-1].key.argument: history[-1] for history in self.applying(selector, scope)}

    def configurables(self) -> list[Configurable]:
        """Every function or class that a binding sets or refers to, macros aside."""
        found: dict[str, Configurable] = {}
        for binding in self.in_force():
            found.setdefault(binding.configurable.selector, binding.configurable)
            for reference in references(binding.value):
                found.setdefault(reference.configurable.selector, reference.configurable)
        return [configurable for configurable in found.values() if not is_builtin(configurable)]


def references(value: Any) -> Iterator[Reference]:
    """The references (macros among them) inside a value, in reading order."""
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from references(key)
            yield from references(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from references(item)


def is_macro(configurable: Configurable) -> bool:
    """Whether this is what `%NAME` calls."""
    return configurable.selector == "gin.macro"


def is_builtin(configurable: Configurable) -> bool:
    """Whether this is gin's own: macro, constant, singleton."""
    return configurable.module == "gin"


def is_required(value: Any) -> bool:
    """Whether the value is `%gin.REQUIRED`."""
    return (
        isinstance(value, Reference)
        and value.configurable.selector == "gin.constant"
        and gin_config.REQUIRED is value.scoped_configurable_fn()
    )


def binding_name(binding: Binding) -> str:
    """A binding as one writes it after `--gin.`: `MACRO` or `scope/module.function.parameter`."""
    return key_name(binding.key, binding.configurable)


def key_name(key: Key, configurable: Configurable, full: bool = False) -> str:
    """As `binding_name`; `full` gives the whole path of the module."""
    if is_macro(configurable):
        return key.scope
    name = full_name(configurable.wrapped) if full else short_name(configurable.wrapped)
    return f"{key.scope}/{name}.{key.argument}" if key.scope else f"{name}.{key.argument}"


def described(binding: Binding) -> str:
    """A binding's name and where it was made; a flag says both at once."""
    name = binding_name(binding)
    return binding.origin if binding.origin == f"--gin.{name}" else f"{name} ({binding.origin})"
