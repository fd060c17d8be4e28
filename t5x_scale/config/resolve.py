"""From a name in a gin file or flag to the function or class it means, with errors that name the nearest one.

gin's dynamic registration does the work; what is added is who is to blame and what was probably meant. Every
file is read with dynamic registration, whether or not it says so: a file that forgets the line would otherwise
bind whatever some earlier file happened to register.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

from gin import config as gin_config
from gin import config_parser

from t5x_scale.config.configuration import Configurable, Configuration
from t5x_scale.config.nearest import hint
from t5x_scale.config.signature import PROVIDED, full_name, parameters, short_name
from t5x_scale.config.trust import check_import, check_path
from t5x_scale.core.errors import UserError

_NO_LOCATION = config_parser.Location(None, 0, None, "")


class FileContext(gin_config.ParseContext):
    """The names one file may use: what it imports itself."""

    def __init__(self, configuration: Configuration):
        super().__init__()
        self._enable_dynamic_registration()
        self._configuration = configuration

    def process_import(self, statement: config_parser.ImportStatement) -> None:
        """Imports a module and remembers the name it is bound to, for this file and for flags.

        Raises:
          UserError: there is no such module, or gin files may not import it.
        """
        check_import(statement.module, self._configuration.trusted)
        with _missing_modules_named(statement):
            super().process_import(statement)
        if statement.module.startswith("__gin__"):
            return
        name = statement.bound_name()
        known = self._configuration.modules.setdefault(name, {})
        known[statement.format()] = (self._symbol_table[name], statement)

    def get_configurable(self, selector: str) -> Configurable:
        """The configurable that `selector` means here, registered on first use."""
        symbol = selector.split(".")[0]
        if symbol not in self._symbol_table:
            raise UserError(f"{symbol!r} is not imported in this file{self._import_hint(symbol)}")
        _follow(self._symbol_table[symbol], selector)
        if symbol != "gin":
            check_path(self._symbol_table[symbol], selector, self._configuration.trusted)
        return super().get_configurable(selector)

    def _import_hint(self, symbol: str) -> str:
        elsewhere = self._configuration.modules.get(symbol)
        if elsewhere:
            return f" (add `{next(iter(elsewhere))}`)"
        return hint(symbol, [name for name in self._symbol_table if name != "gin"])


class FlagContext(FileContext):
    """The names a flag may use: whatever any file imports, or the end of the full name of anything in use."""

    def get_configurable(self, selector: str) -> Configurable:
        """As for files, with `function`, `module.function` or the full path.

        Raises:
          UserError: nothing, or more than one thing, has that name.
        """
        if selector.startswith("gin."):
            return super().get_configurable(selector)
        found = {}
        for configurable in (*self._imported(selector), *self._in_use(selector)):
            found[configurable.selector] = configurable
        if len(found) > 1:
            names = " or ".join(sorted(full_name(configurable.wrapped) for configurable in found.values()))
            raise UserError(f"{selector!r} could be {names}: write more of the name")
        if not found:
            known = [short_name(configurable.wrapped) for configurable in self._configuration.configurables()]
            raise UserError(f"no function or class {selector!r}{hint(selector, known + self._importable(selector))}")
        return next(iter(found.values()))

    def _imported(self, selector: str) -> Iterator[Configurable]:
        symbol = selector.split(".")[0]
        for module, statement in self._configuration.modules.get(symbol, {}).values():
            with contextlib.suppress(UserError):
                _follow(module, selector)
                self._symbol_table[symbol], self._symbol_source[symbol] = module, statement
                yield gin_config.ParseContext.get_configurable(self, selector)

    def _in_use(self, selector: str) -> Iterator[Configurable]:
        for configurable in self._configuration.configurables():
            if f".{full_name(configurable.wrapped)}".endswith(f".{selector}"):
                yield configurable

    def _importable(self, selector: str) -> list[str]:
        symbol = selector.split(".")[0]
        modules = [module for module, _ in self._configuration.modules.get(symbol, {}).values()]
        return [f"{symbol}.{name}" for module in modules for name in _public(module)]


@contextlib.contextmanager
def parsing(context: gin_config.ParseContext) -> Iterator[None]:
    """Makes `context` the one in which gin resolves references."""
    gin_config._PARSE_CONTEXTS.append(context)
    try:
        yield
    finally:
        gin_config._PARSE_CONTEXTS.remove(context)


def register_root(target: str, configuration: Configuration) -> Configurable:
    """Imports `"module:function"`, makes it configurable, and makes its module known to flags."""
    module, function = target.split(":")
    context = FileContext(configuration)
    statement = config_parser.ImportStatement(module, "." in module, None, _NO_LOCATION)
    context.process_import(statement)
    prefix = statement.bound_name() if statement.is_from else module
    return context.get_configurable(f"{prefix}.{function}")


def check_parameter(configurable: Configurable, argument: str) -> None:
    """Raises `UserError` unless `argument` is a parameter that gin may set."""
    known = parameters(configurable.wrapped)
    name = short_name(configurable.wrapped)
    if argument in PROVIDED:
        raise UserError(f"{name}.{argument} is set by the program, not by gin")
    if argument not in known:
        near = hint(argument, known) or (f" (it has {', '.join(known)})" if known else "")
        raise UserError(f"{name} has no parameter {argument!r}{near}")


def _follow(module: Any, selector: str) -> None:
    """Raises `UserError` unless the attributes of `selector` lead from `module` to a function or class."""
    names = selector.split(".")
    value, parent = module, None
    for end, name in enumerate(names[1:], 1):
        if not hasattr(value, name):
            near = hint(name, _public(value))
            raise UserError(f"{'.'.join(names[:end])} has no {name!r}{near}")
        value, parent = getattr(value, name), value
    if not callable(value):
        raise UserError(f"{selector!r} is not a function or class")
    if inspect.isclass(parent) and inspect.isfunction(value):
        raise UserError(f"{selector!r} is a method: refer to the class {'.'.join(names[:-1])} or to a function")


def _public(value: Any) -> list[str]:
    return [name for name in dir(value) if not name.startswith("_")]


@contextlib.contextmanager
def _missing_modules_named(statement: config_parser.ImportStatement) -> Iterator[None]:
    """Turns "the module named does not exist" into a `UserError`; an import that fails inside it stays as it is."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{statement.module}.".startswith(f"{missing}."):
            raise UserError(f"no module {statement.module!r}{_module_hint(missing)}") from None
        raise


def _module_hint(module: str) -> str:
    parent, _, name = module.rpartition(".")
    spec = importlib.util.find_spec(parent) if parent else None
    if spec is not None and spec.submodule_search_locations is None:
        return f": {parent} is a module; import it and write {parent.rpartition('.')[2]}.{name}"
    names = [found.name for found in pkgutil.iter_modules(spec.submodule_search_locations if spec else None)]
    return hint(module, [f"{parent}.{found}" if parent else found for found in names])
