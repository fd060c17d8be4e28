"""Reads JSON lines: plain, `.gz` or `.zst`, with a stated policy for every kind of bad line."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import importlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Literal

import tensorflow as tf

from tasks.common import Patterns, find_files
from tasks.left_out import LeftOut

# Of a line that is unpacked: a megabyte of a packed file can say that a gigabyte follows, and again.
MAX_LINE_BYTES = 1 << 28
# A field's value, one of several, or the same of a nested object's fields.
Where = Mapping[str, "str | int | bool | Sequence[str] | Where"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """What happens to a line that cannot be used. What is left out is counted and said.

    Attributes:
      bad_line: not a JSON object, or without text in a field that is asked for: `error` (which names file and
        line) or `skip`.
      bad_utf8: bytes that are not UTF-8: `error`, `replace` (each becomes U+FFFD) or `skip` the line.
    """

    bad_line: Literal["error", "skip"] = "error"
    bad_utf8: Literal["error", "replace", "skip"] = "error"

    def __post_init__(self):
        if self.bad_line not in ("error", "skip"):
            raise ValueError(f"bad_line must be 'error' or 'skip', not '{self.bad_line}'")
        if self.bad_utf8 not in ("error", "replace", "skip"):
            raise ValueError(f"bad_utf8 must be 'error', 'replace' or 'skip', not '{self.bad_utf8}'")


def check_where(where: Where) -> None:
    """Raises ValueError for a set: its order, and with it what a store records of its source, changes."""
    for field, wanted in where.items():
        if isinstance(wanted, Mapping):
            check_where(wanted)
        elif isinstance(wanted, (set, frozenset)):
            raise ValueError(f"the filter gives a set for '{field}': give a list")


def read_objects(
    patterns: Patterns, where: Where | None, policy: Policy, left_out: LeftOut
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file and line, object) of every line that is not empty and passes `where`, in order.

    Raises:
      FileNotFoundError: a pattern matches nothing.
      ValueError: a line that the policy does not skip.
    """
    for file in find_files(patterns):
        number = 0
        for number, line in enumerate(read_lines(file), start=1):
            place = f"{file}, line {number}"
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            value = _parse(line, place, policy, left_out) if line.strip() else None
            if value is None:
                continue
            if where is not None and not matches(value, where):
                left_out.add("lines do not match the filter", place)
                continue
            yield place, value
        if not number:
            left_out.add("empty files", file)


def _parse(line: bytes, place: str, policy: Policy, left_out: LeftOut) -> dict[str, Any] | None:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        if policy.bad_utf8 == "error":
            byte = error.object[error.start]
            raise ValueError(f"{place}: not UTF-8: byte {error.start} is {byte:#04x}") from error
        replaced = policy.bad_utf8 == "replace"
        left_out.add("lines with bytes replaced" if replaced else "lines not UTF-8", place)
        if not replaced:
            return None
        text = line.decode(errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return reject(f"not valid JSON: {error}", "lines not valid JSON", place, policy, left_out)
    if not isinstance(value, dict):
        return reject("not a JSON object", "lines not a JSON object", place, policy, left_out)
    return value


def reject(message: str, reason: str, place: str, policy: Policy, left_out: LeftOut) -> None:
    """Ends the reading with an error, or counts the line, as the policy says."""
    if policy.bad_line == "error":
        raise ValueError(f"{place}: {message}")
    left_out.add(reason, place)


def take_text(
    value: Mapping[str, Any], field: str, place: str, policy: Policy, left_out: LeftOut, *, numbers: bool = False
) -> bytes | None:
    """The text of a field, as UTF-8; None where there is none and the policy skips the line.

    With `numbers`, a number or a boolean counts as the text that JSON writes for it.
    """
    text = value.get(field)
    if numbers and isinstance(text, (bool, int, float)):
        text = json.dumps(text)
    if not isinstance(text, str):
        reject(f"no text in field '{field}'", f"lines without text in '{field}'", place, policy, left_out)
        return None
    try:
        return text.encode()
    except UnicodeEncodeError:  # Half of a surrogate pair, which JSON can write and UTF-8 cannot.
        left_out.add("lines with half a character replaced by '?'", place)
        return text.encode(errors="replace")


def matches(value: Any, where: Any) -> bool:
    """Whether a JSON value is what `where` asks for; a missing field is not."""
    if isinstance(where, Mapping):
        return isinstance(value, Mapping) and all(
            field in value and matches(value[field], wanted) for field, wanted in where.items()
        )
    if isinstance(where, (list, tuple)):
        return value in where
    return value == where


def read_lines(file: str) -> Iterator[bytes]:
    """The lines of a file, with their ends; unpacked by the file's name.

    Raises:
      ValueError: the file is damaged, or `.zst` and this Python cannot read it.
    """
    with tf.io.gfile.GFile(file, "rb") as stream:
        if file.endswith(".gz"):
            yield from _unpack(file, gzip.GzipFile(fileobj=stream))
        elif file.endswith(".zst"):
            yield from _unpack(file, _open_zstd(file, stream))
        else:
            yield from stream


def _unpack(file: str, unpacked: IO[bytes]) -> Iterator[bytes]:
    try:
        while line := unpacked.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"a line has more than {MAX_LINE_BYTES:,} bytes")
            yield line
    # Each package has a class of its own for damaged data, and zstandard's may not be there to be named.
    except Exception as error:
        raise ValueError(f"{file} cannot be unpacked: {error}") from error


def _open_zstd(file: str, stream: IO[bytes]) -> IO[bytes]:
    """Python 3.14 can read it by itself."""
    try:
        return importlib.import_module("compression.zstd").open(stream, "rb")
    except ImportError:
        pass
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError as error:
        raise ValueError(f"reading {file} needs the package zstandard: pip install 't5x_scale[zstd]'") from error
    # Files packed by several threads, or joined, hold several frames.
    reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
    return io.BufferedReader(reader)
