"""SeqIO tasks as streams of documents: the only file of the package that imports SeqIO and TensorFlow.

A task's feature comes in one of two kinds.

*Text*: its `dtype` is `tf.string`. The task says where text is and what to do with it, the run's
vocabulary turns it into ids, in batches, outside TensorFlow. All tasks under `tasks/` are of this kind, so
one task serves every vocabulary.

*Ids*: its `dtype` is an integer, as in T5-style tasks that tokenise in their preprocessors. The ids are
taken as they are; a run whose vocabulary is known to be another one is refused.

Documents come without end-of-sequence or end-of-document ids: whoever joins documents adds them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.data.source_description import describe_function, without_addresses
from t5x_scale.data.task_modules import import_task_modules
from t5x_scale.data.vocabulary import Vocabulary

__all__ = [
    "SeqioVocabulary",
    "check_vocabulary",
    "describe_document_source",
    "describe_feature_vocabulary",
    "document_source_fingerprint",
    "get_task",
    "import_task_modules",
    "is_text",
    "iterate_documents",
    "iterate_texts",
    "task_or_mixture_names",
]


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drops what native code writes to stderr: TensorFlow's search for drivers, which no log level stops."""
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

with _silent_stderr():
    import seqio
    import tensorflow as tf

    # TensorFlow would take the memory of every accelerator it sees. Too late if it has been used already.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_visible_devices([], "TPU")
# SeqIO and TFDS explain themselves at length at level INFO.
logging.getLogger("absl").setLevel(logging.WARNING)

BATCH_CHARACTERS = 1_000_000
PREPROCESSING_SEED = 0


def task_or_mixture_names(name: str) -> dict[str, float]:
    """The tasks behind a registered name and their shares, which sum to 1.

    A task is a mixture of itself. A SeqIO mixture's rates count *examples*, not tokens.

    Raises:
      UserError: nothing of that name is registered, or its rates are not positive numbers.
    """
    if name in seqio.TaskRegistry.names():
        return {name: 1.0}
    if name not in seqio.MixtureRegistry.names():
        raise UserError(_describe_unknown(name, [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]))
    mixture = seqio.MixtureRegistry.get(name)
    try:
        rates = {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"cannot compute the rates of mixture '{name}': {_first_line(error)}") from error
    total = sum(rates.values())
    if not total > 0 or min(rates.values()) < 0:
        raise UserError(f"the rates of mixture '{name}' must not be negative, nor all zero: {rates}")
    return {task: rate / total for task, rate in rates.items()}


def _describe_unknown(name: str, known: Sequence[str]) -> str:
    if not known:
        return f"no task or mixture '{name}': none is registered; name the module that registers it in TASK_MODULES"
    near = did_you_mean(name, known) or f"; registered are {', '.join(sorted(known)[:20])}"
    return f"no task or mixture '{name}'{near}; is its module in TASK_MODULES?"


def get_task(task_name: str) -> seqio.Task:
    """The registered task of that name; a UserError with near names if there is none."""
    if task_name not in seqio.TaskRegistry.names():
        raise UserError(_describe_unknown(task_name, list(seqio.TaskRegistry.names())))
    return seqio.TaskRegistry.get(task_name)


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
    features = _document_features(task, feature)
    for name in features:
        check_vocabulary(task, name, vocabulary)
    count = 0
    for batch in _batches(_examples(task, split), features):
        columns = [_to_ids(task, name, [row[name] for row in batch], vocabulary) for name in features]
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
    features = _document_features(task, feature)
    if not all(is_text(task, name) for name in features):
        raise UserError(f"task '{task_name}' yields ids, not text, in feature '{feature}'")
    for example in _examples(task, split):
        yield "".join(_to_text(example[name]) for name in features)


def is_text(task: seqio.Task, feature: str) -> bool:
    """Whether the task leaves this feature as text for the run's vocabulary."""
    return task.output_features[feature].dtype == tf.string


def _document_features(task: seqio.Task, feature: str) -> list[str]:
    known = list(task.output_features)
    if feature not in known:
        raise UserError(f"task '{task.name}' has no feature '{feature}'{did_you_mean(feature, known)}; it has {known}")
    return ["inputs", feature] if feature == "targets" and "inputs" in known else [feature]


def _examples(task: seqio.Task, split: str) -> Iterator[Mapping[str, Any]]:
    """The task's examples as numpy values; what goes wrong in SeqIO or in a file becomes one line."""
    splits = list(task.splits)
    if split not in splits:
        raise UserError(f"task '{task.name}' has no split '{split}'{did_you_mean(split, splits)}; it has {splits}")
    try:
        yield from _make_dataset(task, split).as_numpy_iterator()
    except (tf.errors.OpError, OSError, ValueError, AssertionError, LookupError) as error:
        raise UserError(f"cannot read task '{task.name}', split '{split}': {_first_line(error)}") from error


def _make_dataset(task: seqio.Task, split: str) -> tf.data.Dataset:
    # Step by step, not by task.get_dataset: that gives preprocessors which draw random numbers a seed only
    # together with the source, and sources need not take one.
    dataset = task.source.get_dataset(split=split, shuffle=False)
    dataset = task.preprocess_precache(dataset, seed=PREPROCESSING_SEED)
    dataset = task.preprocess_postcache(dataset, sequence_length=None, seed=PREPROCESSING_SEED)
    for name, feature in task.output_features.items():
        _check_spec(name, feature, dataset.element_spec.get(name))
    return dataset.prefetch(tf.data.AUTOTUNE)


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


def _to_ids(task: seqio.Task, name: str, column: list[Any], vocabulary: Vocabulary) -> list[np.ndarray]:
    if is_text(task, name):
        texts = [_to_text(value) for value in column]
        return [np.asarray(ids, np.int32) for ids in vocabulary.encode_batch(texts)]
    eos_id = _eos_id(task.output_features[name])
    return [_check_ids(task, name, _strip_eos(ids, eos_id), vocabulary) for ids in column]


def _to_text(value: bytes | str) -> str:
    """Bytes that are not UTF-8 become U+FFFD: one bad byte must not end a run of a thousand files."""
    return value if isinstance(value, str) else value.decode(errors="replace")


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


def check_vocabulary(task: seqio.Task, feature: str, vocabulary: Vocabulary) -> None:
    """Refuses a task whose ids come from another vocabulary than the run's.

    Says nothing where the task's vocabulary cannot be identified: then only the range of ids is checked.
    """
    found = describe_feature_vocabulary(task, feature)
    if found is not None and found["fingerprint"] not in (None, vocabulary.fingerprint):
        raise UserError(
            f"task '{task.name}' tokenises feature '{feature}' with {found['name']}, "
            f"which is not the run's vocabulary '{vocabulary.spec}'"
        )


def describe_feature_vocabulary(task: seqio.Task, feature: str) -> dict[str, Any] | None:
    """Name, size and fingerprint (or None) of the vocabulary a task tokenises with; None for a text feature."""
    if is_text(task, feature):
        return None
    vocabulary = task.output_features[feature].vocabulary
    fingerprint = None
    if isinstance(vocabulary, SeqioVocabulary):
        fingerprint = vocabulary.wrapped.fingerprint
    elif isinstance(vocabulary, seqio.SentencePieceVocabulary):
        # Of the file, as in Vocabulary: sentinels that SeqIO appends leave the other ids as they are.
        fingerprint = hashlib.sha256(_read_file(vocabulary.sentencepiece_model_file)).hexdigest()
    return {"name": str(vocabulary), "size": vocabulary.vocab_size, "fingerprint": fingerprint}


def _read_file(path: str) -> bytes:
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except tf.errors.OpError as error:
        raise UserError(f"cannot read the vocabulary {path}: {_first_line(error)}") from error


def describe_document_source(task_name: str, split: str, feature: str = "targets") -> dict[str, Any]:
    """What a store frozen from this task depends on, as plain JSON values for its manifest.

    The source and the preprocessors are described by name, arguments and a hash of their code, the
    vocabulary of a T5-style task by name, size and fingerprint. Content of files is not read.
    """
    task = get_task(task_name)
    return {
        "task": task_name,
        "split": split,
        "feature": feature,
        "source": _describe_source(task.source),
        "preprocessors": [describe_function(step) for step in task.preprocessors],
        "tokenised_by": {name: describe_feature_vocabulary(task, name) for name in _document_features(task, feature)},
    }


def document_source_fingerprint(task_name: str, split: str, feature: str = "targets") -> str:
    """Hexadecimal SHA-256 of `describe_document_source`."""
    description = describe_document_source(task_name, split, feature)
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _describe_source(source: seqio.DataSource) -> str:
    function = getattr(source, "_dataset_fn", None)
    if function is not None:
        return f"{type(source).__name__}({describe_function(function)})"
    return without_addresses(str(source))


def _first_line(error: Exception) -> str:
    """The reason inside an error of TensorFlow, which carries a traceback of its own in the text."""
    text = str(getattr(error, "message", "") or error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return re.sub(r"^\{\{.*?\}\} ", "", line)


class SeqioVocabulary(seqio.Vocabulary):
    """One of our vocabularies as SeqIO sees it, for tasks that tokenise in their preprocessors.

    Raises:
      UserError: id 0 of `vocabulary` is a piece of text; SeqIO takes 0 for padding everywhere.
    """

    def __init__(self, vocabulary: Vocabulary):
        if vocabulary.zero_is_text:
            raise UserError(
                f"vocabulary '{vocabulary.spec}' spends id 0 on the text {vocabulary.piece(0)!r}, "
                "which SeqIO takes for padding"
            )
        super().__init__(extra_ids=0)
        self.wrapped = vocabulary

    @property
    def bos_id(self) -> int | None:
        return self.wrapped.bos_id

    @property
    def eos_id(self) -> int | None:
        return self.wrapped.eos_id

    @property
    def unk_id(self) -> int | None:
        return self.wrapped.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.wrapped.size

    def _encode(self, s: str) -> list[int]:
        return self.wrapped.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.wrapped.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: bytes | np.ndarray) -> np.ndarray:
            # TensorFlow hands over bytes inside a graph and an array of rank 0 outside.
            return np.asarray(self.wrapped.encode(_to_text(np.asarray(text).item())), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(values: np.ndarray) -> np.ndarray:
            rows = values.reshape(-1, values.shape[-1])
            texts = [self.wrapped.decode(row).encode() for row in rows]
            return np.array(texts, object).reshape(values.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        texts.set_shape(ids.shape[:-1])
        return texts

    def __eq__(self, other) -> bool:
        return isinstance(other, SeqioVocabulary) and self.wrapped == other.wrapped

    def __str__(self) -> str:
        return f"SeqioVocabulary({self.wrapped.spec})"
