"""The documents of a task as records for a build: text stays text, so that other processes tokenise it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from t5x_scale.core.errors import UserError
from t5x_scale.data.building.interface import Piece, Record
from t5x_scale.data.seqio_source.documents import read_examples, to_ids
from t5x_scale.data.seqio_source.libraries import seqio
from t5x_scale.data.seqio_source.registry import document_features, get_task, is_text
from t5x_scale.data.seqio_source.vocabulary import check_vocabulary
from t5x_scale.data.vocabulary import Vocabulary


def is_supervised(task_name: str, feature: str = "targets") -> bool:
    """Whether a task has `inputs` beside its targets."""
    return len(document_features(get_task(task_name), feature)) == 2


def count_examples(task_name: str, split: str) -> int | None:
    """How many examples the source of a task says it has, before preprocessing; None where it does not say."""
    try:
        return get_task(task_name).num_input_examples(split)
    except Exception:  # Whatever the reason, such as no network: the source cannot say.
        return None


def iterate_records(task_name: str, split: str, vocabulary: Vocabulary, feature: str = "targets") -> Iterator[Record]:
    """The documents of a task in its own order, once. Empty ones are among them: the build counts them.

    Neither order nor content depends on the number of hosts or on the clock: preprocessors that draw random numbers
    get a fixed seed.

    Args:
      task_name: a registered task (not a mixture).
      split: one of the task's splits.
      vocabulary: of the store. It tokenises nothing here; ids of a T5-style task must be its own.
      feature: name of the output feature that holds the document.

    Raises:
      UserError: an unknown task, split or feature, a missing or broken file, a split without documents, or ids that
        are not of `vocabulary`. Raised at the first `next`.
    """
    empty = True
    for record in read_records(get_task(task_name), split, vocabulary, feature):
        empty = False
        yield record
    if empty:
        raise UserError(f"task '{task_name}' has no documents in split '{split}'")


def read_records(
    task: seqio.Task,
    split: str,
    vocabulary: Vocabulary,
    feature: str = "targets",
    *,
    shard: int = 0,
    shards: int = 1,
) -> Iterator[Record]:
    """As `iterate_records`, of a part of a task as `documents.read_examples` has it, which may have no documents."""
    features = document_features(task, feature)
    for name in features:
        check_vocabulary(task, name, vocabulary)
    take = [(name, _taker(task, name, vocabulary)) for name in features]
    for example in read_examples(task, split, shard=shard, shards=shards):
        *inputs, targets = [convert(example[name]) for name, convert in take]
        yield Record((targets,), *inputs)


def _taker(task: seqio.Task, name: str, vocabulary: Vocabulary) -> Callable[[Any], Piece]:
    if is_text(task, name):
        return lambda value: value
    return lambda value: to_ids(task, name, [value], vocabulary)[0]
