"""JSON lines, one document a line with its text in one field: the Pile's form. Plain or gzipped (`.gz`).

from tasks.jsonl import register_jsonl

register_jsonl("my_pile", {"train": "gs://bucket/pile/train/*.jsonl.gz", "validation": "pile/val.jsonl"})
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Iterator, Mapping

import seqio
import tensorflow as tf

from tasks.common import Patterns, add_text_task, as_splits, find_files


def register_jsonl(name: str, splits: Patterns | Mapping[str, Patterns], *, text_field: str = "text") -> seqio.Task:
    """Registers a task over JSON lines; nothing is read before the task is used.

    A line that is not a JSON object with a string in `text_field` ends the reading with an error that
    names file and line. Empty lines are left out.

    Args:
      name: the task's name.
      splits: split to glob or globs; globs alone are the split `train`. Files are read in order of name.
      text_field: the field that holds the text.
    """
    patterns = as_splits(splits)
    make_dataset = functools.partial(_make_dataset, patterns=patterns, text_field=text_field)
    return add_text_task(name, seqio.FunctionDataSource(make_dataset, splits=tuple(patterns)))


def _make_dataset(
    split: str, shuffle_files: bool, seed: int | None = None, *, patterns: Mapping[str, Patterns], text_field: str
) -> tf.data.Dataset:
    del shuffle_files, seed  # Order is the reader's business.
    files = find_files(patterns[split])

    def generate() -> Iterator[dict[str, bytes]]:
        for file in files:
            for number, line in enumerate(_read_lines(file), start=1):
                if line.strip():
                    yield {"text": _read_text(line, text_field, f"{file}, line {number}")}

    return tf.data.Dataset.from_generator(generate, output_signature={"text": tf.TensorSpec([], tf.string)})


def _read_lines(file: str) -> Iterator[bytes]:
    with tf.io.gfile.GFile(file, "rb") as stream:
        if file.endswith(".gz"):
            with gzip.open(stream, "rb") as unpacked:
                yield from unpacked
        else:
            yield from stream


def _read_text(line: bytes, field: str, where: str) -> bytes:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from error
    text = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{where}: no text in field '{field}'")
    return text.encode(errors="replace")
