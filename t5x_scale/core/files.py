"""Paths that may be local or `gs://`, and writes that are whole or absent."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import stat
import uuid
from collections.abc import Callable
from typing import Any

# Decided before etils is imported: gs:// goes through gcsfs, never through TensorFlow.
os.environ.setdefault("EPATH_USE_TF", "false")
# gcsfs would never list a directory twice: what another process writes after the first look would stay unseen.
os.environ.setdefault("FSSPEC_GCS", '{"use_listings_cache": false}')
os.environ.setdefault("FSSPEC_GS", '{"use_listings_cache": false}')

from etils import epath

from t5x_scale.core.errors import UserError

# What goes wrong in the clients of object stores is raised as well, and told in a line; GCSFS_DEBUG brings their pages
# about it back.
for _library in ("gcsfs", "fsspec"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)

Path = epath.Path
# Of JSON and its like: the metadata of a checkpoint of a million leaves.
MAX_DOCUMENT_BYTES = 1 << 28


def to_path(path: str | os.PathLike) -> Path:
    """An absolute `epath.Path` for a local or `gs://` path; `~` is expanded."""
    text = os.fspath(path)
    if "://" in text:
        return epath.Path(text)
    return epath.Path(os.path.abspath(os.path.expanduser(text)))


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` names an object store, where objects are whole and cannot be appended to."""
    return "://" in os.fspath(path)


# Of a path that leads nowhere, for certain: what is missing, below a file, in a circle of links, or cannot be a name.
_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def read_status(path: str | os.PathLike) -> os.stat_result | None:
    """`os.stat` of a local path; None where nothing is there.

    Raises:
      OSError: nobody can say: the storage is away, or refuses.
    """
    try:
        return os.stat(path)
    except ValueError:
        return None  # With a zero byte in it.
    except OSError as error:
        if error.errno in _NOWHERE:
            return None
        raise


def exists(path: str | os.PathLike) -> bool:
    """Whether something is at `path`. (Of local paths `Path.exists` says no where nobody can say.)

    Raises:
      OSError: or what the client of an object store raises: nobody can say, the storage is away or refuses.
    """
    target = to_path(path)
    return target.exists() if is_remote(target) else read_status(target) is not None


def is_directory(path: str | os.PathLike) -> bool:
    """Whether a directory is at `path`. Raises as `exists` does."""
    return _is_kind(to_path(path), "is_dir", stat.S_ISDIR)


def is_file(path: str | os.PathLike) -> bool:
    """Whether a plain file, or an object, is at `path`. Raises as `exists` does."""
    return _is_kind(to_path(path), "is_file", stat.S_ISREG)


def _is_kind(target: Path, question: str, is_mode: Callable[[int], bool]) -> bool:
    if not is_remote(target):
        status = read_status(target)
        return status is not None and is_mode(status.st_mode)
    if getattr(target, question)():
        return True
    target.exists()  # Clients say no where nobody can say, too; here they raise.
    return False


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
        reason = "it is no directory" if isinstance(error, FileExistsError) else error.strerror or error
        raise UserError(f"cannot write to the directory {directory}: {reason}") from error
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


def read_bounded(path: str | os.PathLike, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Reads a file that is a document, whoever wrote it: no more than memory holds, and nothing that never ends.

    Raises:
      OSError: it cannot be read, is larger, or is a pipe, a device or a directory.
    """
    return _read_plain(to_path(path), max_bytes)


def _read_plain(target: Path, max_bytes: int | None) -> bytes:
    if is_remote(target):
        _check_size(target.stat().length, max_bytes)
        return target.read_bytes()
    # A pipe without a writer would be waited for.
    with open(os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", os.fspath(target))
        _check_size(status.st_size, max_bytes)
        return file.read(status.st_size if max_bytes is None else max_bytes)


def _check_size(size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than the {max_bytes:,} of a document")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: the file is missing or is not JSON; the message names it.
    """
    target = to_path(path)
    try:
        return json.loads(read_bounded(target))
    except FileNotFoundError as error:
        raise UserError(f"no such file: {target}") from error
    except OSError as error:
        raise UserError(f"cannot read {target}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{target} is not valid JSON: {error}") from error


# A remote part is rewritten whole by each flush until it reaches this size; then the next part begins.
PART_BYTES = 1 << 18
_PART_PATTERN = re.compile(r"\.part-(\d{5,})$")


class AppendLog:
    """A log of lines that grows: appended to on a local disk, uploaded in numbered parts to an object store.

    Objects cannot be appended to, so `gs://bucket/run/metrics.jsonl` becomes the objects
    `metrics.jsonl.part-00000`, `metrics.jsonl.part-00001`, ...; `read_appended` reads both forms. A log that
    is opened again continues where it ended; a line that a killed process left half-written is dropped.
    One process writes; `write` only touches memory, `flush` makes what was written visible to readers. What a `flush`
    that fails could not write (disk full) is written by the next one.
    """

    def __init__(self, path: str | os.PathLike, part_bytes: int = PART_BYTES):
        self._path = to_path(path)
        self._file: io.FileIO | None = None
        self._unwritten = bytearray()
        self._part_bytes = part_bytes
        self._part: list[bytes] = []
        self._dirty = False
        self._closed = False
        if is_remote(self._path):
            self._number = _count_parts(self._path)
        else:
            _drop_torn_line(self._path)
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115  (held open until close)

    def write(self, line: str) -> None:
        """Adds one line; `line` carries no newline of its own."""
        if self._closed:
            raise ValueError(f"{self._path} is closed")
        data = line.encode("utf-8") + b"\n"
        if self._file is not None:
            self._unwritten += data
            return
        self._part.append(data)
        self._dirty = True

    def flush(self) -> None:
        """Makes every line written so far visible to readers of the path."""
        if self._file is not None:
            while self._unwritten:
                del self._unwritten[: self._file.write(self._unwritten)]
            return
        if not self._dirty:
            return
        part = b"".join(self._part)
        self._path.parent.joinpath(f"{self._path.name}.part-{self._number:05d}").write_bytes(part)
        self._dirty = False
        if len(part) >= self._part_bytes:
            self._number += 1
            self._part = []

    def sync(self) -> None:
        """`flush`, and waits until the lines would survive the machine: for those that must stand before deeds do."""
        self.flush()
        if self._file is not None:
            os.fsync(self._file.fileno())
            _sync_directory(self._path.parent)

    def close(self) -> None:
        """Flushes and releases the file. Closing twice is harmless."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._closed = True

    def __enter__(self) -> AppendLog:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def read_appended(path: str | os.PathLike, errors: str = "strict") -> list[str]:
    """The complete lines of an `AppendLog`, oldest first, without newlines; `[]` where there is none yet.

    A last line without its newline is still being written and is left out. What is not UTF-8 is an error, or with
    `errors="replace"` U+FFFD.

    Raises:
      UserError: it cannot be read, or is a pipe, a device or a directory; the message names it.
    """
    target = to_path(path)
    try:
        # As long as it is: a run of a year has a long one.
        chunks = _read_if_there(target)
        chunks += [_read_plain(part, None) for _, part in sorted(_list_parts(target))]
    except OSError as error:
        raise UserError(f"cannot read {target}: {error.strerror or error}") from error
    lines: list[str] = []
    for chunk in chunks:
        lines += chunk[: chunk.rfind(b"\n") + 1].decode("utf-8", errors).split("\n")[:-1]
    return lines


def _read_if_there(target: Path) -> list[bytes]:
    try:
        return [_read_plain(target, None)]
    except FileNotFoundError:
        return []


def _sync_directory(directory: Path) -> None:
    """Makes the names of new files in a local directory survive the machine."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _list_parts(path: Path) -> list[tuple[int, Path]]:
    if not exists(path.parent):
        return []
    parts = []
    for candidate in path.parent.iterdir():
        match = _PART_PATTERN.search(candidate.name)
        if match and candidate.name[: match.start()] == path.name:
            parts.append((int(match.group(1)), candidate))
    return parts


def _count_parts(path: Path) -> int:
    return max((number + 1 for number, _ in _list_parts(path)), default=0)


def _drop_torn_line(path: Path) -> None:
    """Cuts a local file back to its last newline; the block at the end is searched, not the whole file."""
    try:
        file = open(path, "r+b")  # noqa: SIM115  (closed below)
    except FileNotFoundError:
        return
    with file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - (1 << 16))
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)
