"""Files that are on the disk when they are written, past the page cache where the file system allows it.

A conversion writes each byte once and never reads it again. Through the page cache that costs a copy and a page fault
for every 4 KiB, as much processor time as the conversion itself; written directly it costs next to nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError

# What direct writes want of addresses and lengths: a page.
_ALIGNMENT = mmap.PAGESIZE
_DIRECT = getattr(os, "O_DIRECT", 0)


def make_buffer(size: int) -> np.ndarray:
    """uint8 [size or more], aligned to pages and freed as a whole."""
    return np.frombuffer(mmap.mmap(-1, -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT), np.uint8)


def write_file(path: files.Path, data: bytes | np.ndarray) -> None:
    """Writes bytes or uint8 [n] as a file or object, with its parents.

    Raises:
      UserError: naming what could not be written.
    """
    view = memoryview(data)
    with describe_failures(path):
        if files.is_remote(path):
            path.write_bytes(bytes(view))
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb", buffering=0) as file:
            if isinstance(data, np.ndarray) and data.ctypes.data % _ALIGNMENT == 0:
                view = _write_directly(file.fileno(), view)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())


def _write_directly(descriptor: int, view: memoryview) -> memoryview:
    """Writes the whole pages of `view` past the cache; returns what is left to be written."""
    end = len(view) // _ALIGNMENT * _ALIGNMENT
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _DIRECT)
        while end:
            count = os.write(descriptor, view[:end])
            view, end = view[count:], end - count
            if count % _ALIGNMENT:
                break
    except OSError as error:
        if error.errno != errno.EINVAL:  # A file system without direct writes.
            raise
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return view


def commit_directory(staging: files.Path, target: files.Path) -> None:
    """Gives a local directory its final name, after everything in it is on the disk.

    Raises:
      UserError: it cannot be renamed.
    """
    with describe_failures(target):
        for directory, _, _ in os.walk(staging):
            _sync_directory(directory)
        os.rename(staging, target)
        _sync_directory(target.parent)


def _sync_directory(path: str | os.PathLike) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def describe_failures(path: files.Path) -> Iterator[None]:
    """Says in one line what could not be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
