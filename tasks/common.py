"""What the tasks of this folder share: a feature that stays text, and files in a fixed order."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import seqio
import tensorflow as tf

# Text, for the run's vocabulary to turn into ids: one task serves every vocabulary.
TEXT_FEATURES = {
    "targets": seqio.Feature(seqio.PassThroughVocabulary(size=0), add_eos=False, dtype=tf.string, rank=0),
}
Patterns = str | Iterable[str]


def add_text_task(name: str, source: seqio.DataSource, text_key: str = "text") -> seqio.Task:
    """Registers a task whose documents are the texts a source yields under `text_key`."""
    take_text = functools.partial(seqio.preprocessors.rekey, key_map={"targets": text_key})
    return seqio.TaskRegistry.add(
        name, source=source, preprocessors=[take_text], output_features=TEXT_FEATURES, metric_fns=[]
    )


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
    return dict(splits) if isinstance(splits, Mapping) else {"train": splits}
