"""Paths that may be local or `gs://`, and writes that are whole or absent."""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

# Decided before etils is imported: gs:// goes through gcsfs, never through TensorFlow.
os.environ.setdefault("EPATH_USE_TF", "false")

from etils import epath  # noqa: E402  (the variable above must be set first)

from t5x_scale.core.errors import UserError  # noqa: E402

Path = epath.Path


def to_path(path: str | os.PathLike) -> Path:
    """An absolute `epath.Path` for a local or `gs://` path; `~` is expanded."""
    text = os.fspath(path)
    if "://" in text:
        return epath.Path(text)
    return epath.Path(os.path.abspath(os.path.expanduser(text)))


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` names an object store, where objects are whole and cannot be appended to."""
    return "://" in os.fspath(path)


def make_directory(path: str | os.PathLike) -> Path:
    """Creates `path` with its parents and checks that it can be written to.

    Raises:
      UserError: naming the directory that cannot be created or written.
    """
    directory = to_path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not is_remote(directory):
            probe = directory / f".write_probe_{uuid.uuid4().hex}"
            probe.write_text("")
            probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to the directory {directory}: {error.strerror or error}") from error
    return directory


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file whole: a reader sees the old content or the new one, never a part."""
    target = to_path(path)
    if is_remote(target):
        target.write_text(text)
        return
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    temporary.write_text(text)
    os.replace(temporary, target)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: the file is missing or is not JSON; the message names it.
    """
    target = to_path(path)
    try:
        return json.loads(target.read_text())
    except FileNotFoundError as error:
        raise UserError(f"no such file: {target}") from error
    except ValueError as error:
        raise UserError(f"{target} is not valid JSON: {error}") from error
