"""The configuration of a run as one gin file, to be kept beside the run and read again."""

from __future__ import annotations

from collections.abc import Iterable

from t5x_scale.config.configuration import Binding, Configurable, Configuration, is_builtin, is_macro, references
from t5x_scale.config.reach import Reached
from t5x_scale.config.values import to_text


def operative_config_text(configuration: Configuration, reached: Iterable[Reached]) -> str:
    """A gin file without includes that stands for all the files and flags given.

    It holds what any of the commands reaches with the values in force, so that it serves train, eval and infer
    alike; macros stay macros, so that they can be overridden again. What overriding made useless is left out.

    Args:
      configuration: everything parsed.
      reached: from `strict.check`, for every command.
    """
    keys = set().union(*(found.keys for found in reached))
    bindings = [binding for binding in configuration.in_force() if binding.key in keys]
    names = _Names()
    for binding in bindings:
        for configurable in (binding.configurable, *(r.configurable for r in references(binding.value))):
            names.add(configurable)
    macros = [f"{b.key.scope} = {to_text(b.value, names.of)}" for b in bindings if is_macro(b.configurable)]
    rest = [b for b in bindings if not is_macro(b.configurable)]
    parts = [["from __gin__ import dynamic_registration", *names.imports()], macros, *_groups(rest, names)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _groups(bindings: list[Binding], names: _Names) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for binding in bindings:
        builtin = is_builtin(binding.configurable)
        name = binding.key.selector if builtin else names.of(binding.configurable)
        scoped = f"{binding.key.scope}/{name}" if binding.key.scope else name
        groups.setdefault(scoped, []).append(f"{scoped}.{binding.key.argument} = {to_text(binding.value, names.of)}")
    return list(groups.values())


class _Names:
    """One import and one name for each module, whatever the files called it."""

    def __init__(self) -> None:
        self._aliases: dict[str, str] = {}

    def add(self, configurable: Configurable) -> None:
        if is_builtin(configurable):
            return
        module, _ = _source(configurable)
        if module in self._aliases:
            return
        base = module.rpartition(".")[2]
        taken, alias, number = {"gin", *self._aliases.values()}, base, 2
        while alias in taken:
            alias, number = f"{base}_{number}", number + 1
        self._aliases[module] = alias

    def of(self, configurable: Configurable) -> str:
        module, path = _source(configurable)
        return f"{self._aliases[module]}.{path}"

    def imports(self) -> list[str]:
        return [self._import(module, alias) for module, alias in sorted(self._aliases.items())]

    def _import(self, module: str, alias: str) -> str:
        parent, _, name = module.rpartition(".")
        statement = f"from {parent} import {name}" if parent else f"import {name}"
        return statement if alias == name else f"{statement} as {alias}"


def _source(configurable: Configurable) -> tuple[str, str]:
    """The module a configurable was imported from, and its path inside."""
    statement, path = configurable.import_source
    return statement.module, path
