"""Imports the modules that register tasks, and says clearly what went wrong with one that cannot be imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import sys
import traceback
from collections.abc import Sequence

from t5x_scale.core.errors import UserError, did_you_mean


def import_task_modules(modules: Sequence[str]) -> None:
    """Imports modules by dotted name, in order; a module imported before is left as it is.

    Raises:
      UserError: a module is not found, or fails while it is imported; the message says where.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except UserError:
            raise
        except ModuleNotFoundError as error:
            if error.name and (module == error.name or module.startswith(error.name + ".")):
                raise UserError(f"no task module '{module}'{_did_you_mean_module(error.name)}") from error
            raise UserError(_describe_failure(module, error)) from error
        except Exception as error:
            raise UserError(_describe_failure(module, error)) from error


def _did_you_mean_module(missing: str) -> str:
    parent, _, name = missing.rpartition(".")
    if parent:
        beside = pkgutil.iter_modules(getattr(sys.modules[parent], "__path__", []))
        return did_you_mean(name, [found.name for found in beside])
    # Editable installs are known to the metadata only.
    installed = importlib.metadata.packages_distributions()
    return did_you_mean(name, {*installed, *(found.name for found in pkgutil.iter_modules())})


def _describe_failure(module: str, error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = str(error).strip().splitlines() or [""]
    return (
        f"task module '{module}' fails while it is imported: {type(error).__name__}: {reason[0]} "
        f"({last.filename}:{last.lineno})"
    )
