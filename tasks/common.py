"""What the tasks of this folder share: features that stay text, and files in a fixed order."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import seqio
import tensorflow as tf

_TEXT = seqio.Feature(seqio.PassThroughVocabulary(size=0), add_eos=False, dtype=tf.string, rank=0)
# Text, for the run's vocabulary to turn into ids: one task serves every vocabulary.
TEXT_FEATURES = {"targets": _TEXT}
SUPERVISED_FEATURES = {"inputs": _TEXT, "targets": _TEXT}
Patterns = str | Iterable[str]
# Examples that cross from Python to TensorFlow at once; one by one costs more than reading them.
_EXAMPLES_AT_ONCE = 64


def add_text_task(name: str, source: seqio.DataSource, text_key: str = "text") -> seqio.Task:
    """Registers a task whose documents are the texts a source yields under `text_key`."""
    take_text = functools.partial(seqio.preprocessors.rekey, key_map={"targets": text_key})
    return seqio.TaskRegistry.add(
        name, source=source, preprocessors=[take_text], output_features=TEXT_FEATURES, metric_fns=[]
    )


def add_supervised_task(
    name: str,
    source: seqio.DataSource,
    *,
    inputs_key: str = "inputs",
    targets_key: str = "targets",
    preprocessors: Sequence[Callable[..., tf.data.Dataset]] = (),
    metric_fns: Sequence[Callable] = (),
) -> seqio.Task:
    """Registers a task of questions and answers: only the targets are learnt, the inputs are read.

    The two are joined with nothing between them, so whatever stands between question and answer, a blank or a
    newline, belongs to one of them.

        add_supervised_task("capitals", source, inputs_key="country", targets_key="capital")

    Args:
      name: the task's name.
      source: yields dictionaries of scalar texts.
      inputs_key, targets_key: the fields that hold the two, after the preprocessors.
      preprocessors: from data set to data set, in this order, before the two fields are taken.
      metric_fns: functions of (targets, predictions), lists of texts, that return {metric: value}.
    """
    take_texts = functools.partial(seqio.preprocessors.rekey, key_map={"inputs": inputs_key, "targets": targets_key})
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[*preprocessors, take_texts],
        output_features=SUPERVISED_FEATURES,
        metric_fns=list(metric_fns),
    )


def make_dataset(examples: Callable[[], Iterator[tuple[bytes, ...]]], fields: Sequence[str]) -> tf.data.Dataset:
    """A data set of examples made in Python: {field: scalar text}, in the generator's order.

    Args:
      examples: called once a pass; yields tuples of UTF-8 in the order of `fields`.
      fields: their names.
    """

    def generate() -> Iterator[dict[str, list[bytes]]]:
        iterator = examples()
        while batch := list(itertools.islice(iterator, _EXAMPLES_AT_ONCE)):
            yield dict(zip(fields, map(list, zip(*batch, strict=True)), strict=True))

    signature = {field: tf.TensorSpec([None], tf.string) for field in fields}
    return tf.data.Dataset.from_generator(generate, output_signature=signature).unbatch()


def find_files(patterns: Patterns) -> list[str]:
    """The files a glob, or several, stand for, each list sorted by name; local or `gs://`.

    Raises:
      FileNotFoundError: a pattern matches nothing.
    """
    files = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = sorted(tf.io.gfile.glob(pattern))
        if not found:
            raise FileNotFoundError(f"no file matches {pattern}")
        files += found
    return files


def as_splits(splits: Patterns | Mapping[str, Patterns]) -> dict[str, Patterns]:
    """`{"train": …, "validation": …}`; patterns alone are the split `train`."""
    given = splits if isinstance(splits, Mapping) else {"train": splits}
    # Lists, so that what a store records of its source is the same in every process.
    return {split: found if isinstance(found, str) else list(found) for split, found in given.items()}
