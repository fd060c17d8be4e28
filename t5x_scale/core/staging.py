"""Directories that are whole or absent, and never in place of what is there."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator

from t5x_scale.core import files
from t5x_scale.core.errors import UserError

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None


def check_target(path: str | os.PathLike) -> files.Path:
    """Where a directory will be written.

    Raises:
      UserError: something is there already.
    """
    target = files.to_path(path)
    if not files.is_remote(target) and os.path.islink(target) and not files.exists(target):
        raise UserError(f"{target} is a link that leads nowhere; name a directory that does not exist yet")
    if not files.exists(target) or (files.is_directory(target) and not any(target.iterdir())):
        return target
    # There a killed process leaves a part of the directory under its own name.
    hint = ", or delete it if writing it was interrupted" if files.is_remote(target) else ""
    raise UserError(f"{target} exists; nothing is overwritten: name a directory that does not exist yet{hint}")


@contextlib.contextmanager
def staged(target: files.Path) -> Iterator[files.Path]:
    """A directory that becomes `target` when the context ends well, and is gone when it does not.

    On a disk it is the sibling `.NAME.partial-<random>`, brought to the disk and renamed at the end. What a killed
    process left under such a name is removed by the next one that writes to the same target. An object store renames
    nothing: there it is `target` itself, and who writes must write last what makes it look finished.

    Args:
      target: does not exist yet, or is an empty directory.

    Raises:
      UserError: it cannot be written, or somebody else has written to `target` in the meantime.
    """
    if files.is_remote(target):
        try:
            yield files.make_directory(target)
        except BaseException:
            target.rmtree(missing_ok=True)
            raise
        return
    files.make_directory(target.parent)
    _remove_abandoned(target)
    staging = target.parent / f"{_staging_prefix(target)}{uuid.uuid4().hex[:12]}"
    try:
        staging.mkdir()
    except OSError as error:  # The name may be too long.
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    with _lock(staging):
        try:
            yield staging
            _sync(staging)
            # Over a directory that is empty this succeeds, over another it fails.
            os.rename(staging, target)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise UserError(f"cannot write {target}: {error.strerror or error}") from error
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    _sync_entry(target.parent)


def _staging_prefix(target: files.Path) -> str:
    return f".{target.name}.partial-"


def _remove_abandoned(target: files.Path) -> None:
    """What killed exports to this target left: their locks ended with them."""
    for entry in target.parent.iterdir():
        if entry.name.startswith(_staging_prefix(target)):
            with _lock(entry) as locked:
                if locked:
                    shutil.rmtree(entry, ignore_errors=True)


@contextlib.contextmanager
def _lock(directory: files.Path) -> Iterator[bool]:
    """Marks a directory as in use until the context or the process ends; False where another process has it."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def _sync(directory: files.Path) -> None:
    for entry in directory.iterdir():
        _sync_entry(entry)
    _sync_entry(directory)


def _sync_entry(path: files.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
