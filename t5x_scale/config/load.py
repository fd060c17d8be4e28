"""From files and flags to a checked configuration, and from that to the arguments of a command."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gin import config as gin_config

from t5x_scale.config.configuration import Configurable, Configuration, Key, described
from t5x_scale.config.parse import FileReader, add_value, read_flag
from t5x_scale.config.reach import Reached
from t5x_scale.config.resolve import register_root
from t5x_scale.config.search import GinFile, find_gin_file
from t5x_scale.config.strict import check
from t5x_scale.config.trust import check_import
from t5x_scale.config.values import expand
from t5x_scale.core.errors import UserError

# These two look at all bindings, whichever command they belong to; strict.check looks at what the command uses.
_REPLACED_HOOKS = (gin_config.validate_macros_hook, gin_config.find_missing_overrides_hook)
_TASK_MODULES = Key("TASK_MODULES", "gin.macro", "value")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a flag sets. `value` is gin text, unless `literal` is False: then a string, or a tuple of strings."""

    name: str
    value: Any
    flag: str
    literal: bool = True


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checked configuration, installed in gin. `reached` says for each command what it uses."""

    configuration: Configuration
    root: Configurable
    reached: dict[str, Reached]


def load(
    command: str,
    commands: dict[str, str],
    files: Sequence[str] = (),
    settings: Sequence[Setting] = (),
    search_paths: Sequence[str] = (),
    task_modules: Sequence[str] = (),
) -> Loaded:
    """Reads files, then settings, checks everything and installs it in gin, for this process.

    A command that can assume a run when it is given none names a run file in its module, as `USUAL_RUN`.

    Args:
      command: the chosen command, a key of `commands`.
      commands: command -> "module:function".
      files: gin files, later ones override earlier ones.
      settings: what flags set, over the files.
      search_paths: further directories for relative names of files.
      task_modules: names appended to the macro TASK_MODULES, which is not imported here; gin files may import these.

    Raises:
      UserError: anything is wrong, in one line.
    """
    # Before the command is imported, which may take seconds.
    found = [find_gin_file(path, search_paths) for path in files]
    configuration, root = _read(commands[command], found, search_paths, task_modules)
    usual = getattr(sys.modules[commands[command].split(":")[0]], "USUAL_RUN", None)
    if usual is not None and not any(key.selector == root.selector for key in configuration.bindings):
        # No file is a run file of this command. What it takes instead comes first, so that all given files win.
        found = [find_gin_file(usual, search_paths), *found]
        configuration, root = _read(commands[command], found, search_paths, task_modules)
    _check_task_modules(configuration)
    for setting in settings:
        add = read_flag if setting.literal else add_value
        add(configuration, setting.name, setting.value, setting.flag)
    if task_modules:
        _append_task_modules(configuration, task_modules)
    roots = {command: root, **_other_roots(command, commands)}
    reached = check(configuration, command, roots)
    _install(configuration)
    return Loaded(configuration, root, reached)


def make_arguments(loaded: Loaded, function: Callable | None = None, **provided: Any) -> dict[str, Any]:
    """The keyword arguments of the command's function: what gin binds, made, and those of `provided` it takes.

    Args:
      loaded: from `load`.
      function: who receives the arguments, and only those its signature names, which alone are made; the command's
        own by default.
      **provided: see `signature.PROVIDED`.
    """
    root = loaded.root.wrapped
    signature = inspect.signature(function or root).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
    bound = gin_config.get_bindings(root, resolve_references=False)
    wanted = {name: value for name, value in bound.items() if takes_all or name in signature}
    try:
        # A copy of a reference is what it refers to, made (`gin.get_bindings` does the same with all of them).
        arguments = copy.deepcopy(wanted)
    except UserError as error:
        raise UserError(str(error).split("\n")[0]) from None  # gin adds lines of its own.
    return arguments | {name: value for name, value in provided.items() if name in signature}


def _read(
    target: str, files: Sequence[GinFile], search_paths: Sequence[str], trusted: Sequence[str]
) -> tuple[Configuration, Configurable]:
    """What the files say, in order, and the command's function."""
    gin_config.clear_config()
    configuration = Configuration(trusted=tuple(trusted))
    root = register_root(target, configuration)
    reader = FileReader(configuration, search_paths)
    for file in files:
        reader.read(file)
    return configuration, root


def _other_roots(command: str, commands: dict[str, str]) -> dict[str, Configurable]:
    """The functions of other commands, where something may have bound them; none is imported for this."""
    roots = {}
    for name, target in commands.items():
        module, function = target.split(":")
        found = getattr(sys.modules.get(module), function, None)
        configurable = gin_config._INVERSE_REGISTRY.get(found) if found is not None else None
        if name != command and configurable is not None:
            roots[name] = configurable
    return roots


def _check_task_modules(configuration: Configuration) -> None:
    """What files put into TASK_MODULES would be imported: the same is asked of it as of an import."""
    for binding in configuration.bindings.get(_TASK_MODULES, ()):
        modules = expand(configuration, binding.value)
        for module in modules if isinstance(modules, (list, tuple)) else ():
            if isinstance(module, str):
                try:
                    check_import(module, configuration.trusted)
                except UserError as error:
                    raise UserError(f"{described(binding)}: {error}") from None


def _append_task_modules(configuration: Configuration, names: Sequence[str]) -> None:
    flag = f"--module_import={names[-1]}"
    before = configuration.bindings.get(_TASK_MODULES)
    modules = expand(configuration, before[-1].value) if before else ()
    if not isinstance(modules, (list, tuple)) or not all(isinstance(module, str) for module in modules):
        raise UserError(f"{flag}: {described(before[-1])} is not a tuple of module names")
    add_value(configuration, "TASK_MODULES", tuple(dict.fromkeys([*modules, *names])), flag)


def _install(configuration: Configuration) -> None:
    for binding in configuration.in_force():
        key = binding.key
        gin_config._CONFIG.setdefault((key.scope, key.selector), {})[key.argument] = binding.value
    hooks = gin_config._FINALIZE_HOOKS
    kept = list(hooks)
    hooks[:] = [hook for hook in kept if hook not in _REPLACED_HOOKS]
    try:
        gin_config.finalize()
    finally:
        hooks[:] = kept
