"""The documents of a task, in the task's own order, once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.data.seqio_source.libraries import first_line, seqio, tf
from t5x_scale.data.seqio_source.registry import document_features, get_task, is_text
from t5x_scale.data.seqio_source.vocabulary import check_vocabulary, to_text
from t5x_scale.data.vocabulary import Vocabulary

BATCH_CHARACTERS = 1_000_000
PREPROCESSING_SEED = 0
# Every random preprocessor of an epoch has a seed of its own, counted from the epoch's.
EPOCH_SEEDS = 100_003
# Scalars that are taken from TensorFlow at once.
EXAMPLES_AT_ONCE = 64


def iterate_documents(
    task_name: str, split: str, vocabulary: Vocabulary, feature: str = "targets"
) -> Iterator[np.ndarray]:
    """The documents of a task as ids, in the task's own order, once.

    Neither order nor content depends on the number of hosts or on the clock: preprocessors that draw random
    numbers get a fixed seed. Documents without a token are left out. A supervised task, one that has `inputs`
    beside `targets`, gives the ids of both joined, with nothing between them.

    Args:
      task_name: a registered task (not a mixture).
      split: one of the task's splits.
      vocabulary: turns text into ids; ids of a T5-style task must be its own.
      feature: name of the output feature that holds the document.

    Yields:
      int32 arrays [length], length > 0, every id in `[0, vocabulary.size)`.

    Raises:
      UserError: an unknown task, split or feature, a missing or broken file, a split without documents,
        or ids that are not of `vocabulary`. Raised at the first `next`.
    """
    task = get_task(task_name)
    features = document_features(task, feature)
    for name in features:
        check_vocabulary(task, name, vocabulary)
    count = 0
    for batch in _batches(read_examples(task, split), features):
        columns = [to_ids(task, name, [row[name] for row in batch], vocabulary) for name in features]
        for parts in zip(*columns, strict=True):
            document = parts[0] if len(parts) == 1 else np.concatenate(parts)
            if document.size:
                count += 1
                yield document
    if count == 0:
        raise UserError(f"task '{task_name}' has no documents in split '{split}'")


def iterate_texts(task_name: str, split: str, feature: str = "targets") -> Iterator[str]:
    """The documents of a text task as text, in the task's own order, once.

    Raises:
      UserError: as `iterate_documents`, and for a feature of ids.
    """
    task = get_task(task_name)
    features = document_features(task, feature)
    if not all(is_text(task, name) for name in features):
        raise UserError(f"task '{task_name}' yields ids, not text, in feature '{feature}'")
    for example in read_examples(task, split):
        yield "".join(to_text(example[name]) for name in features)


def read_examples(
    task: seqio.Task, split: str, *, epoch: int = 0, shard: int = 0, shards: int = 1
) -> Iterator[Mapping[str, Any]]:
    """The task's examples as numpy values, in its own order; the same arguments give the same examples.

    Args:
      task: registered with SeqIO.
      split: one of its splits.
      epoch: preprocessors that draw random numbers draw others in every epoch.
      shard, shards: which part. As in SeqIO, a part of the files if there are enough, otherwise every `shards`-th
        example of the source.

    Raises:
      UserError: what goes wrong in SeqIO, in a preprocessor or in a file, in one line.
    """
    splits = list(task.splits)
    if split not in splits:
        raise UserError(f"task '{task.name}' has no split '{split}'{did_you_mean(split, splits)}; it has {splits}")
    try:
        yield from _to_numpy(_make_dataset(task, split, epoch, shard, shards))
    except (tf.errors.OpError, OSError, ValueError, AssertionError, LookupError) as error:
        raise UserError(f"cannot read task '{task.name}', split '{split}': {first_line(error)}") from error


def _to_numpy(dataset: tf.data.Dataset) -> Iterator[Mapping[str, Any]]:
    """The examples of a data set; scalars, such as texts, come over in groups, ten times as fast as one by one."""
    if any(getattr(spec, "shape", None) != () for spec in dataset.element_spec.values()):
        yield from dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
        return
    for group in dataset.batch(EXAMPLES_AT_ONCE).prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        for values in zip(*group.values(), strict=True):
            yield dict(zip(group, values, strict=True))


def is_sharded_by_files(task: seqio.Task, split: str, shards: int) -> bool:
    """Whether each of so many shards reads files of its own."""
    return task.source.supports_arbitrary_sharding or len(task.source.list_shards(split)) >= shards


def _make_dataset(task: seqio.Task, split: str, epoch: int, shard: int, shards: int) -> tf.data.Dataset:
    # Step by step, not by task.get_dataset: that gives preprocessors which draw random numbers a seed only
    # together with the source, and sources need not take one.
    if shards == 1:
        dataset = task.source.get_dataset(split=split, shuffle=False)
    elif is_sharded_by_files(task, split, shards):
        dataset = task.source.get_dataset(split=split, shuffle=False, shard_info=seqio.ShardInfo(shard, shards))
    else:
        dataset = task.source.get_dataset(split=split, shuffle=False).shard(shards, shard)
    seed = PREPROCESSING_SEED + EPOCH_SEEDS * epoch
    try:
        dataset = task.preprocess_precache(dataset, seed=seed)
        dataset = task.preprocess_postcache(dataset, sequence_length=None, seed=seed)
    except TypeError as error:
        raise ValueError(f"a preprocessor fails, as those do that need a sequence_length: {error}") from error
    for name, feature in task.output_features.items():
        _check_spec(name, feature, dataset.element_spec.get(name))
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options)


def _check_spec(name: str, feature: seqio.Feature, spec: tf.TensorSpec | None) -> None:
    if spec is None:
        if feature.required:
            raise ValueError(f"the preprocessors leave no feature '{name}'")
    elif spec.dtype != feature.dtype or spec.shape.rank != feature.rank:
        raise ValueError(
            f"feature '{name}' is {spec.dtype.name} of rank {spec.shape.rank}, "
            f"but is declared as {feature.dtype.name} of rank {feature.rank}"
        )


def _batches(examples: Iterator[Mapping[str, Any]], features: Sequence[str]) -> Iterator[list[Mapping[str, Any]]]:
    """Groups examples so that a batch has about a million characters, whatever the length of a document."""
    batch, characters = [], 0
    for example in examples:
        batch.append(example)
        characters += sum(len(example[name]) for name in features) + 1
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def to_ids(task: seqio.Task, name: str, column: Sequence[Any], vocabulary: Vocabulary) -> list[np.ndarray]:
    """The ids of a feature of many examples, int32 [n] each: text through the vocabulary, ids as they are."""
    if is_text(task, name):
        texts = [to_text(value) for value in column]
        return [np.asarray(ids, np.int32) for ids in vocabulary.encode_batch(texts)]
    eos_id = _eos_id(task.output_features[name])
    return [_check_ids(task, name, _strip_eos(ids, eos_id), vocabulary) for ids in column]


def _eos_id(feature: seqio.Feature) -> int | None:
    return feature.vocabulary.eos_id if feature.add_eos else None


def _strip_eos(ids: np.ndarray, eos_id: int | None) -> np.ndarray:
    has_eos = eos_id is not None and ids.size > 0 and ids[-1] == eos_id
    return (ids[:-1] if has_eos else ids).astype(np.int32)


def _check_ids(task: seqio.Task, name: str, ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    if ids.size and not (ids.min() >= 0 and ids.max() < vocabulary.size):
        raise UserError(
            f"task '{task.name}' yields ids from {ids.min()} to {ids.max()} in feature '{name}', "
            f"but the vocabulary '{vocabulary.spec}' has {vocabulary.size} ids"
        )
    return ids
