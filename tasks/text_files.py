"""Plain text files, by path or `gs://` glob. Call `register_text_files` from a module of your own.

from tasks.text_files import register_text_files

register_text_files("my_text", {"train": "data/train-*.txt", "validation": "data/held_out.txt"})
register_text_files("my_books", "gs://bucket/books/*.txt", document="file")
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal

import seqio
import tensorflow as tf

from tasks.common import Patterns, add_text_task, as_splits, find_files


def register_text_files(
    name: str, splits: Patterns | Mapping[str, Patterns], *, document: Literal["line", "file"] = "line"
) -> seqio.Task:
    """Registers a task over text files; nothing is read before the task is used.

    Args:
      name: the task's name.
      splits: split to glob or globs; globs alone are the split `train`. Files are read in order of name.
      document: what one document is: a `line`, without its end, empty ones left out, or a whole `file`.
    """
    if document not in ("line", "file"):
        raise ValueError(f"document must be 'line' or 'file', not '{document}'")
    patterns = as_splits(splits)
    make_dataset = functools.partial(_make_dataset, patterns=patterns, document=document)
    return add_text_task(name, seqio.FunctionDataSource(make_dataset, splits=tuple(patterns)))


def _make_dataset(
    split: str, shuffle_files: bool, seed: int | None = None, *, patterns: Mapping[str, Patterns], document: str
) -> tf.data.Dataset:
    del shuffle_files, seed  # Order is the reader's business.
    files = find_files(patterns[split])
    if document == "file":
        texts = tf.data.Dataset.from_tensor_slices(files).map(tf.io.read_file)
    else:
        texts = tf.data.TextLineDataset(files).filter(lambda line: tf.strings.length(line) > 0)
    return texts.map(lambda text: {"text": text})
