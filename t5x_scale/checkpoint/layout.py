"""What a checkpoint looks like on disk, and how to tell one from a leftover.

    MODEL_DIR/checkpoints/
      1200/                     one committed step; the name is the step and nothing else
        state/                  the arrays, nested dicts named by leaf path (Orbax: OCDBT from a run, the plain
                                form from a conversion, see plain_form.py)
        metadata/metadata       one JSON document, see below
        commit_success.txt      object stores only: written last
      1400.orbax-checkpoint-tmp a save that is running, or was killed
      1200.deleting             a deletion that is running, or was killed
      run_id                    a number by which machines know what they keep of this run (see local_tier.py)
      1600.set_aside            a step of a timeline that was given up; never read, never deleted by us

A directory that is renamed when complete (disks) or marked when complete (object stores) is a checkpoint;
everything else is not. The document carries a digest of itself, so a rotten or torn one does not parse:

    {"digest": sha256 of "content", "content": {"format": 1, "step": 1200,
     "leaves": {"params/...": {"shape": [..], "dtype": "float32", "fingerprint": "16 hex digits"}}, "metadata": {..}}}

What was saved once can be opened for ever. `tests/checkpoint/released/` holds a small checkpoint of every format and
form that was ever written, and tests open them all. Whoever changes what is on disk so that `FORMAT` moves keeps the
reading of the older ones in `read_document`, and adds a checkpoint of the new one there (`make_released.py` says how);
those that are there are never written again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import stat
from collections.abc import Mapping
from typing import Any

import jax

from t5x_scale.core import files, trees
from t5x_scale.core.errors import OneLineError, UserError, describe_unreadable
from t5x_scale.core.storage_errors import explained, find_absence

LOGGER = logging.getLogger("t5x_scale.checkpoint")
FORMAT = 1
CHECKPOINTS = "checkpoints"
STATE_ITEM = "state"
METADATA_ITEM = "metadata"
COMMIT_MARKER = "commit_success.txt"
DELETING_SUFFIX = ".deleting"
SET_ASIDE_SUFFIX = ".set_aside"
_STEP_NAME = re.compile(r"0|[1-9]\d*")
_FINGERPRINT = re.compile("[0-9a-f]{16}")
# Numpy's bound of dimensions; sizes fit into int64.
_MAX_DIMENSIONS, _MAX_SIZE = 64, 2**63 - 1
_TEMPORARY_NAME = re.compile(r"\d+(\.orbax-checkpoint-tmp.*|\.deleting)")


class DamagedError(OneLineError):
    """A checkpoint that is there but cannot be trusted; the message says why."""


@dataclasses.dataclass(frozen=True)
class LeafRecord:
    """What the metadata says about one leaf."""

    shape: tuple[int, ...]
    dtype: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Document:
    """The metadata of one checkpoint: its step, its leaves by path, and what the caller stored beside them."""

    step: int
    leaves: dict[str, LeafRecord]
    metadata: dict[str, Any]


def flatten_leaves(tree: Any) -> dict[str, Any]:
    """`{"a/b/0": leaf}` of any pytree: dict keys, attribute names and sequence indices joined by slashes.

    Raises:
      ValueError: two leaves would have the same path, or a key is empty or holds a slash.
    """
    flat: dict[str, Any] = {}
    for key_path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        parts = [_key_name(key) for key in key_path]
        path = "/".join(parts)
        if path in flat or not all(parts) or any("/" in part for part in parts):
            raise ValueError(f"the leaf path {path!r} is ambiguous: keys must be unique, not empty and without '/'")
        flat[path] = leaf
    return flat


def unflatten_leaves(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """A pytree of the structure of `tree` with the leaves of `leaves`, found by path."""
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[path] for path in flatten_leaves(tree)])


def step_directory(directory: files.Path, step: int) -> files.Path:
    """Where the checkpoint of `step` lies, under the directory that holds all steps."""
    return directory / str(step)


def list_steps(directory: files.Path) -> list[int]:
    """The committed steps in `directory`, ascending; `[]` where the directory does not exist."""
    return sorted(int(path.name) for path in _list(directory) if is_committed(path))


def list_leftovers(directory: files.Path) -> list[files.Path]:
    """What killed saves and killed deletions left in `directory`. A save that is running looks the same."""
    leftovers = []
    for path in _list(directory):
        uncommitted = files.is_remote(path) and _STEP_NAME.fullmatch(path.name) and not is_committed(path)
        if uncommitted or _TEMPORARY_NAME.fullmatch(path.name):
            leftovers.append(path)
    return leftovers


def is_committed(path: files.Path) -> bool:
    """Whether `path` is a whole checkpoint by name and marker. Whether its bits are right is not asked.

    Raises:
      OSError: nobody can say, see `files.exists`: a step that is not listed would be passed over.
    """
    if not _STEP_NAME.fullmatch(path.name):
        return False
    if files.is_remote(path):
        return files.exists(path / COMMIT_MARKER)
    status = files.read_status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def set_aside(directory: files.Path, step: int) -> files.Path:
    """Renames a step that no longer belongs to the run; says so in a warning and returns the new path."""
    path = step_directory(directory, step)
    target = directory / f"{step}{SET_ASIDE_SUFFIX}"
    number = 1
    while files.exists(target):
        number += 1
        target = directory / f"{step}{SET_ASIDE_SUFFIX}_{number}"
    LOGGER.warning("this run continues from before step %d: setting %s aside as %s", step, path, target.name)
    if files.is_remote(path):
        # A rename is a copy and a delete there: unmark first, so that a part of it never counts.
        (path / COMMIT_MARKER).unlink()
    path.rename(target)
    return target


def delete_step(directory: files.Path, step: int) -> None:
    """Deletes a step so that a deletion killed half-way leaves nothing that counts as a checkpoint."""
    path = step_directory(directory, step)
    if files.is_remote(path):
        (path / COMMIT_MARKER).unlink()
        path.rmtree()
        return
    doomed = directory / f"{step}{DELETING_SUFFIX}"
    path.rename(doomed)
    doomed.rmtree()


def find_step_directory(path: str) -> tuple[files.Path, list[int]]:
    """Resolves what a user named: a MODEL_DIR, its `checkpoints` directory, or one step's directory.

    Returns:
      The directory that holds steps, and the candidate steps, newest first (one if a step was named).

    Raises:
      UserError: nothing there is a checkpoint.
    """
    named = files.to_path(path)
    if is_committed(named) and files.exists(named / METADATA_ITEM):
        return named.parent, [int(named.name)]
    for directory in (named / CHECKPOINTS, named):
        steps = list_steps(directory)
        if steps:
            return directory, steps[::-1]
    reason = "holds no finished checkpoint" if files.exists(named) else "does not exist"
    raise UserError(f"{named} {reason}; name a MODEL_DIR, its {CHECKPOINTS} directory, or one step's directory")


def read_newest(path: str) -> tuple[files.Path, Document]:
    """The directory and the document of the newest step of what a user named; the arrays are not looked at.

    Raises:
      UserError: nothing is there, or its metadata is damaged.
    """
    with explained(path):
        directory, steps = find_step_directory(path)
        where = step_directory(directory, steps[0])
        try:
            return where, read_document(where)
        except DamagedError as error:
            raise UserError(f"the checkpoint {where} cannot be used: {error}") from error


def combine_digest(document: Document) -> str:
    """One digest of all leaves, 16 hexadecimal digits: equal when paths, shapes, dtypes and bits are."""
    leaves = {path: dataclasses.asdict(leaf) for path, leaf in document.leaves.items()}
    return hashlib.sha256(_canonical(leaves).encode()).hexdigest()[:16]


def render_document(document: Document) -> dict[str, Any]:
    """The JSON value that is stored for a document.

    Raises:
      TypeError: the caller's metadata holds something that JSON does not.
    """
    content = {"format": FORMAT, **dataclasses.asdict(document)}
    text = _canonical(content)
    return {"digest": hashlib.sha256(text.encode()).hexdigest(), "content": json.loads(text)}


def read_document(path: files.Path) -> Document:
    """Reads the metadata of the step directory `path` and checks its digest.

    Raises:
      DamagedError: it is missing, torn, altered, of another step, or of an unknown format.
    """
    try:
        stored = json.loads(files.read_bounded(path / METADATA_ITEM / "metadata"))
        content = stored["content"]
        if hashlib.sha256(_canonical(content).encode()).hexdigest() != stored["digest"]:
            raise DamagedError("its metadata does not match its digest")
        if content["format"] != FORMAT:
            raise DamagedError(f"its format is {content['format']}, this program reads {FORMAT}")
        leaves = {_check_path(name): _to_record(leaf) for name, leaf in content["leaves"].items()}
        document = Document(content["step"], leaves, dict(content["metadata"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"its metadata cannot be read: {describe_unreadable(error)}") from error
    if type(document.step) is not int or str(document.step) != path.name:
        raise DamagedError(f"its metadata is of step {document.step}")
    return document


def _check_path(path: str) -> str:
    """A leaf is found by its path: it must not lead out of the checkpoint.

    Raises:
      ValueError: a part of it is empty or a place of its own, or it holds what no file may be called.
    """
    if any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
        raise ValueError(f"{path!r} is no path of a leaf")
    return path


def _to_record(leaf: Mapping[str, Any]) -> LeafRecord:
    shape, dtype, fingerprint = tuple(leaf["shape"]), leaf["dtype"], leaf["fingerprint"]
    if len(shape) > _MAX_DIMENSIONS or not all(type(size) is int and 0 <= size <= _MAX_SIZE for size in shape):
        raise ValueError("a shape that is none")
    if not isinstance(dtype, str) or not _FINGERPRINT.fullmatch(fingerprint):
        raise ValueError("a dtype or fingerprint that is none")
    return LeafRecord(shape, dtype, fingerprint)


def check_leaves(document: Document, abstract: Mapping[str, Any], where: str) -> None:
    """Compares the leaves on record with the leaves asked for, before anything is read.

    Args:
      document: the metadata of the checkpoint.
      abstract: leaf path to anything with a shape and a dtype.
      where: the checkpoint, for the message.

    Raises:
      UserError: naming the first leaf that is missing, unexpected, or of another shape or dtype.
    """
    trees.check_shapes(document.leaves, abstract, where, leaf="leaf", user="this run")
    for path, leaf in abstract.items():
        saved = document.leaves[path]
        if saved.dtype != str(leaf.dtype):
            raise UserError(f"'{path}' is {saved.dtype} in {where}, this run needs {leaf.dtype}")


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=True)


def _list(directory: files.Path) -> list[files.Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []  # It may be there a moment later.
    except (OSError, ValueError) as error:
        if find_absence(error) or files.exists(directory):
            raise
        return []


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise ValueError(f"a pytree key of type {type(key).__name__} has no name")
