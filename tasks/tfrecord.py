"""TFRecord files of `tf.train.Example`, by path or `gs://` glob.

from tasks.tfrecord import register_tfrecord

register_tfrecord("my_records", {"train": "gs://bucket/train.tfrecord-*"}, text_field="content")
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import seqio
import tensorflow as tf

from tasks.common import Patterns, add_text_task, as_splits, find_files
from tasks.left_out import LeftOut


def register_tfrecord(
    name: str, splits: Patterns | Mapping[str, Patterns], *, text_field: str = "text", compression: str = ""
) -> seqio.Task:
    """Registers a task over TFRecords; nothing is read before the task is used.

    Files without a byte are left out; the log says how many. Bytes that are not UTF-8 become U+FFFD.

    Args:
      name: the task's name.
      splits: split to glob or globs; globs alone are the split `train`. Files are read in order of name.
      text_field: the bytes feature of each example that holds the text.
      compression: "", "GZIP" or "ZLIB".
    """
    patterns = as_splits(splits)
    make_dataset = functools.partial(
        _make_dataset, name=name, patterns=patterns, text_field=text_field, compression=compression
    )
    return add_text_task(name, seqio.FunctionDataSource(make_dataset, splits=tuple(patterns)))


def _make_dataset(
    split: str,
    shuffle_files: bool,
    seed: int | None = None,
    *,
    name: str,
    patterns: Mapping[str, Patterns],
    text_field: str,
    compression: str,
) -> tf.data.Dataset:
    del shuffle_files, seed  # Order is the reader's business.
    files, left_out = find_files(patterns[split]), LeftOut(name, split)
    for file in files:
        if not tf.io.gfile.stat(file).length:
            left_out.add("empty files", file)
    left_out.log()
    fields = {text_field: tf.io.FixedLenFeature([], tf.string)}
    records = tf.data.TFRecordDataset(files, compression_type=compression)
    examples = records.map(lambda record: tf.io.parse_single_example(record, fields))
    return examples.map(lambda example: {"text": example[text_field]})
