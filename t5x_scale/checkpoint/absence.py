"""Looking for oneself where the storage library finds nothing.

It asks `exists`, which says no of storage that is away, too, and leaves no cause behind: a sound checkpoint would be
taken for damaged.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

from t5x_scale.checkpoint import plain_form
from t5x_scale.core import files
from t5x_scale.core.storage_errors import find_absence, find_refusal
from t5x_scale.core.zarr_arrays import OCDBT_MANIFEST

_ZARR3_FILE = "zarr.json"


def check_absence(state: files.Path, leaves: Iterable[str], error: Exception) -> None:
    """Returns if the arrays of a step are damaged, as far as this can be found out without reading them.

    Args:
      state: their directory.
      leaves: the paths of those that were wanted.
      error: what reading them has raised.

    Raises:
      DamagedError: naming the description of the tree, where that is the reason: the library names none.
      OSError: or what the client of an object store raises: whether they are there cannot be found out; or all that
        the library may have missed is there.
    """
    if find_absence(error) or find_refusal(error):
        return
    missing = next((path for path in _list_expected(state, leaves) if not files.exists(path)), None)
    # The library itself says so of what it looks for; what cannot be opened comes with the number of the system.
    is_said_missing = isinstance(error, FileNotFoundError) and error.errno is None
    if missing is None and is_said_missing:
        raise TimeoutError(errno.ETIMEDOUT, "it was not found, and is there", os.fspath(state)) from error
    plain_form.list_leaves(state)


def _list_expected(state: files.Path, leaves: Iterable[str]) -> Iterator[files.Path]:
    """What the library looks for before it reads, each file named only when those before it are known to be there."""
    yield state
    yield state / plain_form.TREE_FILE
    tree = plain_form.read_tree(state)
    # Old checkpoints do not say.
    if tree.get("use_ocdbt") or (tree.get("use_ocdbt") is None and files.exists(state / OCDBT_MANIFEST)):
        yield state / OCDBT_MANIFEST
        return
    name = _ZARR3_FILE if tree.get("use_zarr3") else plain_form.ARRAY_FILE
    for path in leaves:
        yield state / plain_form.array_name(path) / name
