"""Plain text files, by path or `gs://` glob. Call `register_text_files` from a module of your own.

from tasks.text_files import register_text_files

register_text_files("my_text", {"train": "data/train-*.txt", "validation": "data/held_out.txt"})
register_text_files("my_books", "gs://bucket/books/*.txt", document="file")
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Literal

import seqio
import tensorflow as tf

from tasks.common import Patterns, add_text_task, as_splits, find_files, make_dataset
from tasks.left_out import LeftOut


def register_text_files(
    name: str,
    splits: Patterns | Mapping[str, Patterns],
    *,
    document: Literal["line", "file"] = "line",
    bad_utf8: Literal["error", "replace", "skip"] = "replace",
) -> seqio.Task:
    """Registers a task over text files; nothing is read before the task is used.

    Empty lines are left out; empty files too, and these are counted.

    Args:
      name: the task's name.
      splits: split to glob or globs; globs alone are the split `train`. Files are read in order of name.
      document: what one document is: a `line`, without its end, empty ones left out, or a whole `file`.
      bad_utf8: a document that is not UTF-8: `error`, which names the place, `replace` bytes by U+FFFD, or `skip`;
        the log says how many.
    """
    if document not in ("line", "file"):
        raise ValueError(f"document must be 'line' or 'file', not '{document}'")
    if bad_utf8 not in ("error", "replace", "skip"):
        raise ValueError(f"bad_utf8 must be 'error', 'replace' or 'skip', not '{bad_utf8}'")
    patterns = as_splits(splits)
    read = functools.partial(_read, name=name, patterns=patterns, document=document, bad_utf8=bad_utf8)
    return add_text_task(name, seqio.FunctionDataSource(read, splits=tuple(patterns)))


def _read(
    split: str,
    shuffle_files: bool,
    seed: int | None = None,
    *,
    name: str,
    patterns: Mapping[str, Patterns],
    document: str,
    bad_utf8: str,
) -> tf.data.Dataset:
    del shuffle_files, seed  # Order is the reader's business.
    files = find_files(patterns[split])

    def generate() -> Iterator[tuple[bytes]]:
        left_out = LeftOut(name, split)
        for file in files:
            for place, data in _read_documents(file, document, left_out):
                text = _check_utf8(data, place, bad_utf8, left_out)
                if text is not None:
                    left_out.taken += 1
                    yield (text,)
        left_out.log()

    return make_dataset(generate, ["text"])


def _read_documents(file: str, document: str, left_out: LeftOut) -> Iterator[tuple[str, bytes]]:
    with tf.io.gfile.GFile(file, "rb") as stream:
        if document == "file":
            data = stream.read()
            if data:
                yield file, data
            else:
                left_out.add("empty files", file)
            return
        number = 0
        for number, line in enumerate(stream, start=1):
            data = line.removesuffix(b"\n").removesuffix(b"\r")
            if data:
                yield f"{file}, line {number}", data
        if not number:
            left_out.add("empty files", file)


def _check_utf8(data: bytes, place: str, bad_utf8: str, left_out: LeftOut) -> bytes | None:
    try:
        data.decode()
        return data
    except UnicodeDecodeError as error:
        if bad_utf8 == "error":
            raise ValueError(f"{place}: not UTF-8: byte {error.start} is {data[error.start]:#04x}") from error
    replaced = bad_utf8 == "replace"
    left_out.add("documents with bytes replaced" if replaced else "documents not UTF-8", place)
    return data.decode(errors="replace").encode() if replaced else None
