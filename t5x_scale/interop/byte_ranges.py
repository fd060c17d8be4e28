"""Boxes of arrays that lie row-major in files: only the bytes of the box pass through memory."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.contiguous import to_contiguous
from t5x_scale.core.errors import UserError
from t5x_scale.core.lazy import Region

# Rows are read whole and cut in memory where no more than this would be thrown away for each: one long read is
# faster than many short ones. A request to an object store costs what some megabytes cost.
LOCAL_GAP_BYTES = 1 << 15
REMOTE_GAP_BYTES = 1 << 22
_SPAN_BYTES = 1 << 23


class Readable(Protocol):
    """A file whose bytes are read by position."""

    gap_bytes: int

    def read_into(self, position: int, out: np.ndarray) -> None:
        """Fills `out`, uint8 [n], with the bytes from `position` on."""


class _LocalFile:
    gap_bytes = LOCAL_GAP_BYTES
    in_order = False

    def __init__(self, descriptor: int, path: files.Path):
        self._descriptor = descriptor
        self._path = path

    def read_into(self, position: int, out: np.ndarray) -> None:
        view = memoryview(out)
        while view:
            count = os.preadv(self._descriptor, [view], position)  # At most 2 GiB a call.
            if not count:
                raise UserError(f"{self._path} ends at byte {position:,}: it has become shorter since it was opened")
            view, position = view[count:], position + count

    def write(self, position: int, data: np.ndarray) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._descriptor, view, position)
            view, position = view[count:], position + count


class _RemoteFile:
    gap_bytes = REMOTE_GAP_BYTES
    in_order = True

    def __init__(self, file, path: files.Path):
        self._file = file
        self._path = path

    def read_into(self, position: int, out: np.ndarray) -> None:
        self._file.seek(position)
        view = memoryview(out)
        while view:
            count = self._file.readinto(view)
            if not count:
                raise UserError(f"{self._path} ends early: {len(view):,} bytes are missing")
            view = view[count:]

    def write(self, position: int, data: np.ndarray) -> None:
        if position != self._file.tell():
            raise ValueError(f"byte {position} of {self._path} is written after byte {self._file.tell()}")
        self._file.write(data.tobytes())


@contextlib.contextmanager
def open_ranges(path: files.Path) -> Iterator[Readable]:
    """A file, local or remote, for reading by position. Opened for each box: nothing is held in between.

    Raises:
      UserError: it cannot be opened or read.
    """
    try:
        with _open_remote(path) if files.is_remote(path) else _open_local(path) as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _open_remote(path: files.Path) -> Iterator[Readable]:
    with path.open("rb") as file:
        yield _RemoteFile(file, path)


@contextlib.contextmanager
def _open_local(path: files.Path) -> Iterator[Readable]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield _LocalFile(descriptor, path)
    finally:
        os.close(descriptor)


def read_box(file: Readable, begin: int, shape: Sequence[int], dtype: np.dtype, region: Region) -> np.ndarray:
    """The elements of `region` of an array of `shape` that begins at byte `begin`."""
    box = np.empty(tuple(part.stop - part.start for part in region), dtype)
    if box.size:
        _fill(file, begin, shape, region, box)
    return box


def _fill(file: Readable, begin: int, shape: Sequence[int], region: Region, out: np.ndarray) -> None:
    if _is_contiguous(shape, region):
        file.read_into(begin + _first_byte(shape, region, out.itemsize), as_bytes(out))
        return
    row_bytes = math.prod(shape[1:]) * out.itemsize
    begin += region[0].start * row_bytes
    if len(out) == 1 or row_bytes - out[0].nbytes > file.gap_bytes:
        for row, part in enumerate(out):
            _fill(file, begin + row * row_bytes, shape[1:], region[1:], part)
        return
    step = max(1, _SPAN_BYTES // row_bytes)
    span = np.empty((min(step, len(out)), *shape[1:]), out.dtype)
    for row in range(0, len(out), step):
        rows = span[: len(out) - row]
        file.read_into(begin + row * row_bytes, as_bytes(rows))
        out[row : row + step] = rows[(slice(None), *region[1:])]


class Writable(Protocol):
    """A file whose bytes are written by position; `in_order` says that it must be from the first to the last."""

    in_order: bool

    def write(self, position: int, data: np.ndarray) -> None:
        """Writes `data`, uint8 [n], at `position`."""


def write_box(file: Writable, begin: int, shape: Sequence[int], region: Region, block: np.ndarray) -> None:
    """Writes `block` as the elements of `region` of an array of `shape` that begins at byte `begin`."""
    if block.size:
        _spill(file, begin, shape, region, to_contiguous(block))


def _spill(file: Writable, begin: int, shape: Sequence[int], region: Region, block: np.ndarray) -> None:
    if _is_contiguous(shape, region):
        file.write(begin + _first_byte(shape, region, block.itemsize), as_bytes(block))
        return
    row_bytes = math.prod(shape[1:]) * block.itemsize
    for row, part in enumerate(block, region[0].start):
        _spill(file, begin + row * row_bytes, shape[1:], region[1:], part)


def _is_contiguous(shape: Sequence[int], region: Region) -> bool:
    """Whether all but the first dimension are taken whole."""
    return all(part.stop - part.start == size for part, size in zip(region[1:], shape[1:], strict=True))


def _first_byte(shape: Sequence[int], region: Region, itemsize: int) -> int:
    return region[0].start * math.prod(shape[1:]) * itemsize if region else 0


def as_bytes(block: np.ndarray) -> np.ndarray:
    """The memory of a contiguous array as uint8 [n]."""
    return block.reshape(-1).view(np.uint8)


@contextlib.contextmanager
def create_ranges(path: files.Path, size: int) -> Iterator[Writable]:
    """A new file of `size` bytes for writing by position; it is there to stay when the context ends.

    An object is uploaded from its first byte to its last; one that was not finished is taken away again.

    Raises:
      OSError: it is there already, or cannot be written.
    """
    if files.is_remote(path):
        try:
            with path.open("wb") as file:
                yield _RemoteFile(file, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(descriptor, size)
        yield _LocalFile(descriptor, path)
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):  # Linux: what is read back comes from the disk, and others keep their pages.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
