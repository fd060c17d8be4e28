"""What a gin file may reach. One that a stranger wrote must not run code: it names what exists, and nothing else.

A file may import modules of t5x_scale and `tasks`, and those of the person who runs it: what is found without having
been installed (in the working directory, say, or through PYTHONPATH), and what `--module_import` names. Of t5x_scale it
may refer (`@…`) to what a configuration is made of, dataclasses and layers, and to a few functions without side
effects; not to what writes files or starts processes, and not to modules that ours happen to import. Modules of one's
own may be used as they are.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any

from t5x_scale.core.errors import UserError

OURS = ("t5x_scale", "tasks")
_INSTALLED = frozenset({"site-packages", "dist-packages"})
# Modules whose functions are values of a configuration: they compute something from their arguments.
_FUNCTIONS = ("t5x_scale.partitioning.rules", "t5x_scale.commands.precompiling.usual_run")


def check_import(module: str, trusted: Collection[str] = ()) -> None:
    """Raises `UserError` unless a gin file may import `module`; `trusted` are those of `--module_import`."""
    if not is_trusted(module, trusted):
        raise UserError(
            f"gin files may import t5x_scale and your own modules, not {module!r}, which is installed here: if you "
            f"know what the file does with it, add --module_import={module}"
        )


def is_trusted(module: str, trusted: Collection[str] = ()) -> bool:
    """Whether a gin file may import `module`. Nothing is imported to find out."""
    top = module.partition(".")[0]
    if top in (*OURS, "__gin__") or any(f"{module}.".startswith(f"{name}.") for name in trusted):
        return True
    if top in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return True  # The import says so, and what is near.
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location else [])]
    return bool(places) and not any(_INSTALLED.intersection(pathlib.Path(place).parts) for place in places)


def check_path(module: ModuleType, selector: str, trusted: Collection[str] = ()) -> None:
    """Checks that what `selector` names belongs to a module that a gin file may import.

    Args:
      module: what the first name of `selector` stands for.
      selector: `module.Class`, as in a gin file; its attributes exist.
      trusted: see `check_import`.

    Raises:
      UserError: a module on the way may not be imported, or one of ours has it from elsewhere.
    """
    value, owner = module, module
    for name in selector.split(".")[1:]:
        value = getattr(value, name)
        if isinstance(value, ModuleType):
            check_import(value.__name__, trusted)
            owner = value
    home = getattr(value, "__module__", None) or ""
    if _is_ours(owner.__name__) and not _is_ours(home):
        raise UserError(f"{selector!r} is {home or 'nobody'}'s, not t5x_scale's: gin files may not name it")


def check_reference(value: Any) -> None:
    """Raises `UserError` unless a gin file may call `value`, which `check_path` has let pass."""
    home = value.__module__
    is_part = inspect.isclass(value) and dataclasses.is_dataclass(value)
    if _is_ours(home) and not is_part and home not in _FUNCTIONS:
        raise UserError(
            f"@{home.rpartition('.')[2]}.{value.__name__} is no part of a configuration: gin files may not call it"
        )


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "t5x_scale"
