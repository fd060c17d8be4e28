"""Several ways to put the same example to a model, one of which is picked for each, always the same one."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import tensorflow as tf

# (inputs, targets), with {field} where a field of the example stands.
Template = tuple[str, str]
# {field: words for the values 0, 1, …, or {value: word}}.
Choices = Mapping[str, "Sequence[str] | Mapping[str, str]"]
_SEPARATOR = "\x1f"


def fields_of(templates: Sequence[Template]) -> list[str]:
    """The fields that templates mention, sorted.

    Raises:
      ValueError: no template, or one that says more of a field than its name.
    """
    if not templates:
        raise ValueError("give at least one template: a pair (inputs, targets)")
    return sorted({field for template in templates for text in template for _, field in _parse(text) if field})


def phrase(dataset: tf.data.Dataset, templates: Sequence[Template], choices: Choices | None = None) -> tf.data.Dataset:
    """Examples with `inputs` and `targets`, each by one of the templates.

    Which one depends on the example's text alone, so it is the same on any number of hosts and in any order.

    Args:
      dataset: of dictionaries of scalars.
      templates: pairs with `{field}` in braces; doubled braces stand for themselves.
      choices: words for the values of a field, as for a class label.

    Raises:
      ValueError: a field that the data set does not have.
    """
    fields, choices = fields_of(templates), choices or {}
    if missing := [field for field in (*fields, *choices) if field not in dataset.element_spec]:
        raise ValueError(f"the templates need the field '{missing[0]}'; the source has {sorted(dataset.element_spec)}")

    def render(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        values = {field: _as_text(example[field]) for field in fields}
        # Before words take the place of values: a better word must not pick another template.
        key = tf.strings.join([values[field] for field in fields], _SEPARATOR)
        pick = tf.strings.to_hash_bucket_fast(key, len(templates))
        values |= {field: _choose(field, values[field], choices[field]) for field in fields if field in choices}
        inputs, targets = zip(*([_fill(text, values) for text in template] for template in templates), strict=True)
        return {"inputs": tf.stack(inputs)[pick], "targets": tf.stack(targets)[pick]}

    return dataset.map(render, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _parse(text: str) -> list[tuple[str, str | None]]:
    parts = []
    for literal, field, spec, conversion in string.Formatter().parse(text):
        if spec or conversion or (field is not None and not field.isidentifier()):
            raise ValueError(f"a template has names of fields in braces and no more: {text!r}")
        parts.append((literal, field))
    return parts


def _fill(text: str, values: Mapping[str, tf.Tensor]) -> tf.Tensor:
    parts = [part for literal, field in _parse(text) for part in (literal, values[field] if field else "")]
    return tf.strings.join(parts) if parts else tf.constant("")


def _as_text(value: tf.Tensor) -> tf.Tensor:
    return value if value.dtype == tf.string else tf.strings.as_string(value)


def _choose(field: str, value: tf.Tensor, words: Sequence[str] | Mapping[str, str]) -> tf.Tensor:
    table = words if isinstance(words, Mapping) else {str(index): word for index, word in enumerate(words)}
    hits = tf.equal(tf.constant(list(table)), value)
    check = tf.debugging.Assert(tf.reduce_any(hits), [f"no choice for this value of the field {field}:", value])
    with tf.control_dependencies([check]):
        return tf.constant(list(table.values()))[tf.argmax(tf.cast(hits, tf.int32))]
