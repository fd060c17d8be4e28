"""The project's objectives as SeqIO preprocessors, for pipelines that end in SeqIO rather than in a run of `t5x_scale`.

A run needs none of this: it applies `OBJECTIVE` itself, to token stores and to live tasks alike. Here the rows come out
of the task, ready for any decoder that reads SeqIO's fields:

    from tasks.objectives import as_preprocessor, decoder_features
    from t5x_scale.data.objectives import Ul2r
    from t5x_scale.data.seqio_source import SeqioVocabulary
    from t5x_scale.data.vocabulary import load_vocabulary

    vocabulary = load_vocabulary("stdlib_8k")
    ul2r = Ul2r()
    seqio.TaskRegistry.add(
        "my_text_ul2r",
        source=…,                                         # yields {"targets": text}
        preprocessors=[
            tokenize,                                     # text to ids of `vocabulary`, without an end
            as_preprocessor(ul2r, 2048, vocabulary),
        ],
        output_features=decoder_features(ul2r, 2048, vocabulary),
    )
    rows = seqio.get_mixture_or_task("my_text_ul2r").get_dataset(None, "train", seed=0)

With `output="inputs_targets"` the rows are split where learning begins, for SeqIO's own feature converters
(`seqio.PrefixLMFeatureConverter`, or an encoder-decoder's).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import seqio
import tensorflow as tf

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.data.objectives import Example, Objective, Piece, RowKeys, examples_of
from t5x_scale.data.rows.packing import assemble
from t5x_scale.data.vocabulary import Vocabulary

FORMS, OUTPUTS = ("windows", "documents"), ("decoder", "inputs_targets")
Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]


def as_preprocessor(
    objective: Objective, length: int, vocabulary: Vocabulary, *, form: str = "windows", output: str = "decoder"
) -> Preprocessor:
    """An objective as a preprocessor of a SeqIO task.

    It takes a data set of {"targets": int [n]}, or {"inputs": int [m], "targets": int [n]}, one document an element,
    without end-of-document ids. Its randomness follows the seed that `Task.get_dataset` is given: the same seed and
    the same documents in the same order give the same rows.

    Args:
      objective: any of `data.objectives`.
      length: L, positions of a row.
      vocabulary: of the ids.
      form: "windows" joins the documents and cuts rows from the stream; what is left behind the last full row of a
        pass, less than a row, is not delivered. "documents" makes a row of each document, or of each piece of one
        that is too long.
      output: "decoder" gives the fields of `core.batch`, each [L], rows of documents padded and with segment ids.
        "inputs_targets" gives {"inputs", "targets"}, int32 of any length: the tokens that are not learnt, and those
        that are.

    Raises:
      UserError: an unknown form or output, or the vocabulary lacks a token that the objective needs. While rows are
        made: a document too long for an objective that cuts none, or an objective whose rows are not inputs followed
        by targets.
    """
    _check_choice("form", form, FORMS)
    _check_choice("output", output, OUTPUTS)
    bound = objective.with_vocabulary(vocabulary)
    make_rows = _window_rows if form == "windows" else _document_rows
    # Lengths that cannot be are found here, not in the middle of an epoch.
    _ = bound.raw_length(length) if form == "windows" else bound.longest_piece(length)

    def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return make_rows(dataset.map(_join(bound.separator)), bound, length, output)

    return preprocess


def decoder_features(
    objective: Objective, length: int, vocabulary: Vocabulary, *, form: str = "windows"
) -> dict[str, seqio.Feature]:
    """The output features of a task that ends in `as_preprocessor(objective, length, vocabulary, form=form)`."""
    _check_choice("form", form, FORMS)
    names = _field_names(objective.with_vocabulary(vocabulary), length, form)
    passing = seqio.PassThroughVocabulary(vocabulary.size)
    return {name: seqio.Feature(passing, add_eos=False, dtype=tf.as_dtype(batch_lib.DTYPES[name])) for name in names}


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} is {value!r}{did_you_mean(value, choices)}; give one of {', '.join(choices)}")


def _field_names(objective: Objective, length: int, form: str) -> list[str]:
    if form == "windows":
        return list(objective(np.zeros((1, objective.raw_length(length)), np.int32), _row_keys([0, 0]), length))
    prefix = [batch_lib.PREFIX] if objective.has_prefix else []
    return [*batch_lib.REQUIRED, batch_lib.SEGMENT_IDS, batch_lib.POSITIONS, *prefix]


def _row_keys(seed: np.ndarray) -> RowKeys:
    """A key from SeqIO's seed of an element, a pair of int32."""
    low, high = (int(value) % 2**32 for value in seed)
    return RowKeys(low, np.array([high]))


def _join(separator: int) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """Makes {"tokens", "target_start"} of a document."""

    def join(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = tf.cast(example.get("inputs", tf.zeros([0], tf.int32)), tf.int32)
        tokens = tf.concat([inputs, tf.cast(example["targets"], tf.int32), [separator]], axis=0)
        return {"tokens": tokens, "target_start": tf.size(inputs)}

    return join


def _window_rows(documents: tf.data.Dataset, objective: Objective, length: int, output: str) -> tf.data.Dataset:
    stride = objective.stride(length)
    overlap = objective.raw_length(length) - stride
    stream = documents.flat_map(lambda document: tf.data.Dataset.from_tensor_slices(document["tokens"]))
    # The token before the first document is a separator, as it is before any other.
    before = tf.fill([overlap], tf.constant(objective.separator, tf.int32))
    windows = stream.batch(stride, drop_remainder=True).scan(
        before, lambda last, new: (new[stride - overlap :], tf.concat([last, new], axis=0))
    )

    def make(window: np.ndarray, seed: np.ndarray) -> list[np.ndarray]:
        fields = objective(window[None], _row_keys(seed), length)
        return [field[0] for field in fields.values()] if output == "decoder" else _split(examples_of(fields, 0))

    names = _field_names(objective, length, "windows")
    return _map_with_seeds(windows, lambda window, seed: _call(make, [window, seed], names, length, output))


def _document_rows(documents: tf.data.Dataset, objective: Objective, length: int, output: str) -> tf.data.Dataset:
    longest = objective.longest_piece(length) if objective.splits_documents else 2**31 - 1
    names = _field_names(objective, length, "documents")

    def cut(document: dict[str, tf.Tensor]) -> tf.data.Dataset:
        tokens = document["tokens"]
        before = tf.concat([[objective.separator], tokens], axis=0)

        def piece(start: tf.Tensor) -> dict[str, tf.Tensor]:
            start = tf.cast(start, tf.int32)
            target_start = tf.maximum(document["target_start"] - start, 0)
            return {"tokens": tokens[start:][:longest], "previous": before[start], "target_start": target_start}

        return tf.data.Dataset.range(0, tf.size(tokens, tf.int64), longest).map(piece)

    def make(tokens: np.ndarray, previous: np.ndarray, target_start: np.ndarray, seed: np.ndarray) -> list[np.ndarray]:
        if len(tokens) > objective.longest_piece(length):
            raise UserError(
                f"a document of {len(tokens)} tokens is longer than a row of {length}, and {objective.name} cuts none: "
                "leave it out before, or make rows longer"
            )
        generator = _row_keys(seed)[0]
        choice = int(generator.bit_generator.random_raw())
        example = objective.example(Piece(tokens, int(previous), int(target_start)), choice, generator)
        if output == "inputs_targets":
            return _split([example])
        fields = assemble([[example]], length, attend_across_documents=False, with_prefix=objective.has_prefix)
        return [fields[name][0] for name in names]

    def convert(piece: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        values = [piece["tokens"], piece["previous"], piece["target_start"], seed]
        return _call(make, values, names, length, output)

    return _map_with_seeds(documents.flat_map(cut), convert)


def _map_with_seeds(dataset: tf.data.Dataset, convert: Callable) -> tf.data.Dataset:
    return seqio.map_over_dataset(lambda element, seed: convert(element, seed), num_seeds=1)(dataset)


def _call(make: Callable, values: list[tf.Tensor], names: list[str], length: int, output: str) -> dict[str, tf.Tensor]:
    """Calls numpy code from a TensorFlow graph."""
    if output == "inputs_targets":
        inputs, targets = tf.numpy_function(make, values, [tf.int32, tf.int32], stateful=False)
        return {"inputs": tf.ensure_shape(inputs, [None]), "targets": tf.ensure_shape(targets, [None])}
    dtypes = [tf.as_dtype(batch_lib.DTYPES[name]) for name in names]
    fields = tf.numpy_function(make, values, dtypes, stateful=False)
    return {name: tf.ensure_shape(field, [length]) for name, field in zip(names, fields, strict=True)}


def _split(examples: list[Example]) -> list[np.ndarray]:
    """Inputs and targets of a row's only example: where its loss begins."""
    [example, *others] = examples
    first = int(np.argmax(example.weights > 0))
    if others or (example.weights[first:] != 1).any():
        raise UserError("rows of this objective are not inputs followed by targets: use output = 'decoder'")
    return [example.inputs[: first + 1].astype(np.int32), example.targets[first:].astype(np.int32)]
