"""T5X's checkpoints of decoder-only models as `Weights`, in every form it has written since 2021.

    checkpoint_<step>/checkpoint                          a msgpack tree: {version, optimizer: {target, state}}; large
    checkpoint_<step>/target.decoder...kernel/.zarray     leaves are descriptions of zarr arrays beside it
    checkpoint_<step>/state/_METADATA                     or Orbax's form: arrays in a database, or in directories

A description names the driver and bucket of whoever wrote it; the arrays are looked for beside it. What a T5X
checkpoint does not say is what its parameters mean: the architecture comes from the user.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from t5x_scale.core import files, lazy, trees
from t5x_scale.core.errors import UserError
from t5x_scale.core.lazy import LazyArray, Region
from t5x_scale.core.leaves import Origin
from t5x_scale.core.zarr_arrays import open_arrays
from t5x_scale.interop import flax_msgpack
from t5x_scale.interop.mapping import read_rows
from t5x_scale.interop.t5x_tables import check_decoder, rows_of, warn_of_scales
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.assembly import axes_of, shapes_of
from t5x_scale.models.weights import Weights

_STEP_NAME = re.compile(r"checkpoint_(\d+)")
_TREE_FILE, _ORBAX_TREE = "checkpoint", "state/_METADATA"
_PLACEHOLDER = "PLACEHOLDER://"
_TARGET = "target."
# Version 2 kept bfloat16 as uint16; before version 1 there was no version.
_VERSIONS = (1, 2, 3)
# What stands around `target` and `state` in a msgpack tree: T5X's own, or that of the first saves with Orbax.
_WRAPPERS = ("optimizer", "_optimizer")
_TENSORFLOW = b"model_checkpoint_path"


class _Tree(NamedTuple):
    """Leaves by name: arrays, or strings and dicts that say where an array lies; and the version, if there is one."""

    leaves: dict[str, Any]
    version: int | None


def is_t5x(path: str | os.PathLike) -> bool:
    """Whether a T5X checkpoint, or a directory of some, lies at `path`. Whether it can be read is not asked."""
    return _find_checkpoint(files.to_path(path)) is not None


def read_t5x(path: str | os.PathLike, architecture: Architecture) -> Weights:
    """Opens the parameters of a decoder; the state of its optimiser is dropped. No large leaf is read yet.

    Args:
      path: `checkpoint_<step>`, or the directory of several, of which the newest is taken; local or `gs://`.
      architecture: what the parameters mean.

    Raises:
      UserError: there is no such checkpoint, it is damaged, of an encoder-decoder, or has a tensor that does not fit
        the architecture.
    """
    directory = _find_checkpoint(files.to_path(path))
    if directory is None:
        raise UserError(
            f"{files.to_path(path)} is not a T5X checkpoint: it has neither '{_TREE_FILE}' nor {_ORBAX_TREE}"
        )
    tree = _read_tree(directory)
    tensors = _open_target(directory, tree)
    check_decoder(tensors, architecture, str(directory))
    warn_of_scales(architecture, str(directory))
    rows = rows_of(architecture, tensors)
    leaves = read_rows(rows, tensors, shapes_of(architecture), axes_of(architecture))
    others = len(tree.leaves) - len(tensors)
    dropped = {"state": Origin("dropped", "state", f"{others} leaves of the optimiser")} if others else {}
    return Weights(leaves, architecture, dropped=dropped, recipe=({"read": directory.name, "format": "T5X"},))


def _find_checkpoint(path: files.Path) -> files.Path | None:
    if files.is_file(path / _TREE_FILE) or _names_target(path):
        return path
    if not files.is_directory(path):
        return None
    found = [(int(match[1]), entry) for entry in path.iterdir() if (match := _STEP_NAME.fullmatch(entry.name))]
    return max(found)[1] if found else None


def _names_target(path: files.Path) -> bool:
    """Whether it is Orbax's form with T5X's tree: a checkpoint of ours has parameters under `params`."""
    try:
        return any(name.startswith(_TARGET) for name in _orbax_names(path))
    except (UserError, OSError):
        return False


def _orbax_names(path: files.Path) -> list[str]:
    text = files.read_bounded(path / _ORBAX_TREE)
    try:
        entries = json.loads(text)["tree_metadata"].values()
        return [".".join(key["key"] for key in entry["key_metadata"]) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path / _ORBAX_TREE} is damaged ({type(error).__name__}: {error})") from error


def _read_tree(directory: files.Path) -> _Tree:
    source = directory / _TREE_FILE
    if not files.exists(source):
        names = _orbax_names(directory)
        return _Tree({name: f"{_PLACEHOLDER}{name}" for name in names}, None)
    data = source.read_bytes()
    if data.startswith(_TENSORFLOW):
        raise UserError(f"{directory} is a TensorFlow checkpoint of T5; convert it with T5X first")
    try:
        content = flax_msgpack.decode(data)
    except ValueError as error:
        raise UserError(f"{source} is damaged: {error}") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version is not None and not (isinstance(version, int) and version in _VERSIONS):
        raise UserError(f"{source} is of version {version}; known are {', '.join(map(str, _VERSIONS))}")
    tree = content if isinstance(content, dict) else {}
    for name in _WRAPPERS:
        tree = tree.get(name, tree) if isinstance(tree, dict) else tree
    if not isinstance(tree, dict) or "target" not in tree:
        raise UserError(f"{source} has no 'target', which is what T5X calls its parameters")
    flat = trees.flatten(tree, is_leaf=_is_description)
    return _Tree({path.replace("/", "."): leaf for path, leaf in flat.items()}, version)


def _is_description(node: Mapping[str, Any]) -> bool:
    if not {"driver", "kvstore", "metadata"} <= node.keys():
        return False
    store, metadata = node["kvstore"], node["metadata"]
    return isinstance(store, dict) and isinstance(metadata, dict) and isinstance(metadata.get("shape"), list)


def _open_target(directory: files.Path, tree: _Tree) -> dict[str, LazyArray]:
    """The parameters by their names below `target`."""
    leaves = {name.removeprefix(_TARGET): leaf for name, leaf in tree.leaves.items() if name.startswith(_TARGET)}
    places = {name: place for name, leaf in leaves.items() if (place := _place(leaf)) is not None}

    def failure(name: str, reason: str) -> UserError:
        return UserError(f"the tensor '{name}' of {directory} cannot be read: {reason}")

    for name, place in places.items():
        if not _is_inside(place):
            raise failure(name, f"{place!r} is no place in a checkpoint")
    root = directory if files.exists(directory / _TREE_FILE) else (directory / _ORBAX_TREE).parent
    stored = open_arrays(root, places, failure)
    arrays = {}
    for name, leaf in leaves.items():
        if name not in stored and not isinstance(leaf, (np.ndarray, np.number, int, float, complex)):
            raise failure(name, "it is no array")
        array = stored[name] if name in stored else lazy.from_array(np.asarray(leaf))
        _check_description(name, leaf, array, directory)
        arrays[name] = _to_bfloat16(array) if tree.version == 2 and array.dtype == np.uint16 else array
    return arrays


def _place(leaf: Any) -> str | None:
    """The directory of a leaf that is stored as an array of its own, below the checkpoint."""
    if isinstance(leaf, str):
        return leaf.removeprefix(_PLACEHOLDER)
    if not isinstance(leaf, dict):
        return None
    # Before TensorStore 0.1.14 the path stood beside the store.
    named = [store["path"] for store in (leaf["kvstore"], leaf) if isinstance(store.get("path"), str)]
    return named[0].strip("/") if named else ""


def _is_inside(place: str) -> bool:
    """Whether it is a directory below the checkpoint, and neither a way out of it nor an address."""
    return bool(place) and "\0" not in place and not {"", ".", ".."} & set(place.rstrip("/").split("/"))


def _check_description(name: str, leaf: Any, array: LazyArray, directory: files.Path) -> None:
    if isinstance(leaf, dict) and tuple(leaf["metadata"]["shape"]) != array.shape:
        shapes = f"{list(array.shape)} where it lies and {leaf['metadata']['shape']} in '{_TREE_FILE}'"
        raise UserError(f"the tensor '{name}' of {directory} is {shapes}")


def _to_bfloat16(array: LazyArray) -> LazyArray:
    """The same bits under their own name."""

    def read(region: Region) -> np.ndarray:
        return array.read(region).view(ml_dtypes.bfloat16)

    return LazyArray(array.shape, np.dtype(ml_dtypes.bfloat16), read, array.outer)
