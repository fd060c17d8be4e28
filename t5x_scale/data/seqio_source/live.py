"""Examples of a task as a live stream takes them: by shards, epoch after epoch, tokenised outside TensorFlow."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import inspect
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.live.examples import Document, Example
from t5x_scale.data.seqio_source.describe import describe_document_source
from t5x_scale.data.seqio_source.documents import is_sharded_by_files, read_examples, to_ids
from t5x_scale.data.seqio_source.libraries import first_line, seqio, tf
from t5x_scale.data.seqio_source.registry import document_features, get_task
from t5x_scale.data.seqio_source.vocabulary import check_vocabulary
from t5x_scale.data.vocabulary import Vocabulary

_OPEN: weakref.WeakSet[Iterator[Any]] = weakref.WeakSet()


@atexit.register
def _close() -> None:
    """Ends what is being read while Python still runs: sources may be functions in Python, which TensorFlow ends."""
    for examples in list(_OPEN):
        # One may be in use by a thread.
        with contextlib.suppress(ValueError):
            examples.close()


def samples_by_rates(mixture_name: str) -> bool:
    """Whether a registered mixture leaves sampling to SeqIO, instead of bringing a `sample_fn` of its own."""
    usual = inspect.signature(seqio.Mixture.__init__).parameters["sample_fn"].default
    return getattr(seqio.MixtureRegistry.get(mixture_name), "_sample_fn", usual) is usual


class SeqioExamples:
    """A registered task; the interface is `data.live.examples.ExampleSource`.

    Attributes:
      name: of the task.
      description: as a token store records it, and the names of the files; their content is not read.
    """

    def __init__(self, task_name: str, split: str, vocabulary: Vocabulary, feature: str = "targets"):
        """Args:
          task_name: a registered task (not a mixture).
          split: one of its splits.
          vocabulary: turns text into ids; ids of a T5-style task must be its own.
          feature: the output feature that holds documents; `inputs` come before `targets` where there are both.

        Raises:
          UserError: an unknown task, split or feature, files that are not there, or another vocabulary's ids.
        """
        self.name = task_name
        self._task, self._split, self._vocabulary = get_task(task_name), split, vocabulary
        self._features = document_features(self._task, feature)
        for name in self._features:
            check_vocabulary(self._task, name, vocabulary)
        self.description: dict[str, Any] = describe_document_source(task_name, split, feature)
        self.description["files"] = hashlib.sha256("\0".join(self._list_shards()).encode()).hexdigest()

    def is_sharded_by_files(self, shards: int) -> bool:
        """Whether each of so many shards reads files of its own; if not, each reads everything and keeps its part."""
        return is_sharded_by_files(self._task, self._split, shards)

    def open(self, epoch: int, shard: int, shards: int) -> Iterator[Example]:
        """One pass over a shard, in the source's order; raises UserError where something cannot be read."""
        examples = read_examples(self._task, self._split, epoch=epoch, shard=shard, shards=shards)
        _OPEN.add(examples)
        return (tuple(example[name] for name in self._features) for example in examples)

    def encode(self, examples: Sequence[Example]) -> list[Document]:
        """The examples as documents: inputs and targets joined, with nothing between them."""
        columns = [
            to_ids(self._task, name, [example[index] for example in examples], self._vocabulary)
            for index, name in enumerate(self._features)
        ]
        if len(columns) == 1:
            return [Document(ids) for ids in columns[0]]
        return [Document(np.concatenate(parts), len(parts[0])) for parts in zip(*columns, strict=True)]

    def _list_shards(self) -> list[str]:
        splits = list(self._task.splits)
        if self._split not in splits:
            raise UserError(f"task '{self.name}' has no split '{self._split}'; it has {splits}")
        try:
            return [str(shard) for shard in self._task.source.list_shards(self._split)]
        except (tf.errors.OpError, OSError, ValueError, AssertionError, LookupError) as error:
            raise UserError(f"cannot read task '{self.name}', split '{self._split}': {first_line(error)}") from error
