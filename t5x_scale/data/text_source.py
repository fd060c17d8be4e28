"""Plain text files as a data source, without SeqIO or TensorFlow.

Named `text:PATTERN` wherever a task is named: `text:/corpus/**/*.txt`, `text:notes.txt`, `text:gs://bucket/*.md`.
Each file is one document, read as UTF-8, byte for byte. Splits:

    train, validation   with 20 files or more, one file in 20 (those whose names hash lowest) is held out whole;
                        with fewer, the last twentieth of every file, from the beginning of a line where there is one
    all                 everything

A file without a byte is a document without a token: a build counts it under "empty", and it is never held out.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.core.patience import read_patiently
from t5x_scale.data.building.interface import Record
from t5x_scale.data.building.units import join_records
from t5x_scale.data.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

PREFIX = "text:"
SPLITS = ("train", "validation", "all")
HELD_OUT_ONE_IN = 20
# Bytes given to the tokenizer at once; a document is cut behind a newline.
PIECE_BYTES = 2**20
# On top of every disk of Linux's usual file system, and nobody's but root's.
_LOST_AND_FOUND = "lost+found"


def is_text_source(name: str) -> bool:
    """Whether `name` names text files rather than a registered task."""
    return name.startswith(PREFIX)


def list_files(name: str) -> list[files.Path]:
    """The files behind `text:PATTERN`, in the order of their names.

    Raises:
      UserError: no file matches.
    """
    pattern = name.removeprefix(PREFIX)
    if files.is_remote(pattern):
        scheme, rest = pattern.split("://", 1)
        bucket, _, inner = rest.partition("/")
        found = [path for path in files.to_path(f"{scheme}://{bucket}").glob(inner) if not path.is_dir()]
    else:
        found = read_patiently(lambda: _list_local(pattern), f"the directories of '{pattern}' (data source {name})")
    if not found:
        raise UserError(f"no file matches '{pattern}' (data source {name})")
    return sorted(found, key=os.fspath)


def _list_local(pattern: str) -> list[files.Path]:
    """The files that match.

    Raises:
      OSError: a directory on the way cannot be looked into; `glob` would pass it over, which is right only of what a
        file system keeps for itself.
    """
    absolute = os.path.abspath(os.path.expanduser(pattern))
    parts = absolute.split(os.sep)
    for depth in range(1, len(parts)):
        for directory in filter(files.is_directory, glob.glob(os.sep.join(parts[:depth]) or os.sep, recursive=True)):
            if os.path.basename(directory) == _LOST_AND_FOUND:
                continue
            if glob.has_magic(parts[depth]):
                os.scandir(directory).close()
            else:
                files.exists(os.path.join(directory, parts[depth]))
    return [files.to_path(path) for path in glob.glob(absolute, recursive=True) if files.is_file(path)]


def iterate_records(name: str, split: str) -> Iterator[Record]:
    """The documents of a split, in the order of the files' names, each in stretches of about `PIECE_BYTES`.

    Memory does not grow with the corpus, nor with its largest file.

    Raises:
      UserError: an unknown split; a file that cannot be read or is not UTF-8; nothing but empty files.
    """
    for file, start, stop in list_ranges(name, split):
        yield from read_range(file, start, stop)


def read_range(file: files.Path, start: int, stop: int) -> Iterator[Record]:
    """One document, bytes [start, stop) of a file, in stretches.

    Raises:
      UserError: the file cannot be read, became shorter or is not UTF-8.
    """
    pieces = _read_pieces(file, start, stop)
    piece = next(pieces, "")
    for following in pieces:
        yield Record((piece,), ends=False)
        piece = following
    yield Record((piece,))


def iterate_documents(name: str, split: str, vocabulary: Vocabulary) -> Iterator[np.ndarray]:
    """The documents of a split as ids, int32 [length], in the order of the files' names; empty ones too.

    Memory is that of the largest document, not of the corpus.

    Raises:
      UserError: as `iterate_records`.
    """
    for record in join_records(iterate_records(name, split)):
        yield np.concatenate(vocabulary.encode_arrays(list(record.targets)))


def count_bytes(name: str, split: str) -> int:
    """Bytes of a split.

    Raises:
      UserError: as `iterate_records`.
    """
    return sum(stop - start for _, start, stop in list_ranges(name, split))


def describe_source(name: str, split: str) -> dict[str, Any]:
    """What a store frozen from these files depends on, as JSON values. Reads the files once; says which are empty.

    Raises:
      UserError: as `iterate_records`.
    """
    found = list_files(name)
    empty = [file for file in found if not _size(file)]
    if empty:
        logger.warning("%d of %d files behind '%s' are empty, the first is %s", len(empty), len(found), name, empty[0])
    return {
        "task": name,
        "split": split,
        "held_out_one_in": HELD_OUT_ONE_IN,
        "files": len(found),
        "bytes": sum(_size(file) for file in found),
        "listing": _hash_listing(found),
        "content": _hash_content(found),
    }


def check_unchanged(name: str, source: Mapping[str, Any], store: str | os.PathLike) -> None:
    """Compares the files with the description in a store's manifest. Files that are gone are no change.

    Args:
      name: `text:PATTERN`.
      source: the description in the manifest.
      store: where the store lies, for the message.

    Raises:
      UserError: files were added, removed or edited since the store was frozen.
    """
    try:
        found = list_files(name)
    except UserError:
        # The store is complete without the files it came from.
        return
    # Names, sizes and times are a quick look; times change when files are copied, so content decides.
    if source.get("listing") != _hash_listing(found) and source.get("content") != _hash_content(found):
        raise UserError(
            f"the files behind '{name}' changed since their token store {os.fspath(store)} was frozen: a run in "
            "progress needs the old files back; a new run can name another store_dir or delete that store"
        )


def list_ranges(name: str, split: str) -> Iterator[tuple[files.Path, int, int]]:
    """(file, first byte, one past the last byte) of every document of a split, in order.

    Raises:
      UserError: an unknown split; a file that cannot be read; nothing but empty files.
    """
    if split not in SPLITS:
        raise UserError(f"'{name}' has no split '{split}'{did_you_mean(split, SPLITS)}; it has {', '.join(SPLITS)}")
    found = list_files(name)
    sizes = {file: _size(file) for file in found}
    filled = [file for file in found if sizes[file]]
    if not filled:
        others = f", and so are {len(found) - 1} others (data source {name})" if len(found) > 1 else ""
        raise UserError(f"{found[0]} is empty{others}")
    by_files = len(filled) >= HELD_OUT_ONE_IN
    held_out = set(_held_out(filled) if split != "all" and by_files else ())
    for file in found:
        if split == "all" or by_files or not sizes[file]:
            if split == "all" or (file in held_out) == (split == "validation"):
                yield file, 0, sizes[file]
            continue
        border = _find_border(file, sizes[file])
        start, stop = (0, border) if split == "train" else (border, sizes[file])
        if start < stop:
            yield file, start, stop


def _held_out(found: list[files.Path]) -> set[files.Path]:
    parent = os.path.commonpath([os.fspath(file.parent) for file in found])

    def rank(file: files.Path) -> bytes:
        # The name within the corpus, so that a corpus that is moved keeps its split.
        return hashlib.sha256(os.path.relpath(os.fspath(file), parent).encode()).digest()

    return set(sorted(found, key=rank)[: len(found) // HELD_OUT_ONE_IN])


def _find_border(file: files.Path, size: int) -> int:
    """Where the held-out end of a file begins: a line if one begins there, otherwise a character."""
    border = size - size // HELD_OUT_ONE_IN
    with _says_which(file), file.open("rb") as stream:
        stream.seek(border)
        tail = stream.read(PIECE_BYTES)
    newline = tail.find(b"\n")
    if 0 <= newline < len(tail) - 1:
        return border + newline + 1
    return border + next((index for index, byte in enumerate(tail) if byte & 0xC0 != 0x80), len(tail))


@contextlib.contextmanager
def _says_which(file: files.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error


def _size(file: files.Path) -> int:
    with _says_which(file):
        return file.stat().length


def _read_pieces(file: files.Path, start: int, stop: int) -> Iterator[str]:
    """The text of a byte range in pieces that end behind a newline where they can."""
    carried, position = b"", start
    try:
        with _says_which(file), file.open("rb") as stream:
            stream.seek(start)
            while position + len(carried) < stop:
                block = stream.read(min(PIECE_BYTES, stop - position - len(carried)))
                if not block:
                    raise UserError(f"{file} became shorter while it was read")
                data = carried + block
                cut = len(data) if position + len(data) == stop else _find_cut(data)
                yield data[:cut].decode("utf-8")
                carried, position = data[cut:], position + cut
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8: byte {position + error.start} is {error.object[error.start]:#04x}"
        ) from error


def _find_cut(data: bytes) -> int:
    newline = data.rfind(b"\n")
    if newline >= 0:
        return newline + 1
    # Before the first byte of the last character, which may be cut off.
    return max((index for index in range(len(data) - 4, len(data)) if data[index] & 0xC0 != 0x80), default=len(data))


def _hash_listing(found: list[files.Path]) -> str:
    entries = [f"{os.fspath(file)}\0{_size(file)}\0{_modified(file)}" for file in found]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def _modified(file: files.Path) -> int:
    with _says_which(file):
        # The portable answer is in whole seconds.
        return int(file.stat().mtime) if files.is_remote(file) else os.stat(file).st_mtime_ns


def _hash_content(found: list[files.Path]) -> str:
    digest = hashlib.sha256()
    for file in found:
        digest.update(f"{file.name}\0{_size(file)}\0".encode())
        with _says_which(file), file.open("rb") as stream:
            while block := stream.read(PIECE_BYTES):
                digest.update(block)
    return digest.hexdigest()
