"""School mathematics in the form of GSM8K: JSON lines with `question` and `answer`, which ends in `#### 42`.

from tasks.gsm8k import register_gsm8k

register_gsm8k("gsm8k", {"train": "gsm8k/train.jsonl", "validation": "gsm8k/test.jsonl"})
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import seqio
import tensorflow as tf

from tasks.common import Patterns, add_supervised_task
from tasks.jsonl import jsonl_source
from tasks.metrics import exact_match_number
from tasks.phrasing import fields_of, phrase

PROMPT = "Question: {question}\nAnswer:"


def register_gsm8k(
    name: str,
    splits: Patterns | Mapping[str, Patterns],
    *,
    prompt: str = PROMPT,
    calculator: bool = False,
) -> seqio.Task:
    """Registers a supervised task: the question is read, the solution and its final answer are learnt.

    Its metric is the share of answers whose final number, behind `####`, is right (arXiv 2110.14168).

    Args:
      name: the task's name.
      splits: split to glob or globs of JSON lines; globs alone are the split `train`.
      prompt: the inputs, with `{question}` in braces; no blank at the end, for the targets begin with one.
      calculator: keeps the annotations of a calculator, such as `<<48/2=24>>`.

    Raises:
      ValueError: a prompt without the question.
    """
    if fields_of([(prompt, "")]) != ["question"]:
        raise ValueError(f"the prompt must hold {{question}} and no other field: {prompt!r}")
    words = functools.partial(phrase, templates=((prompt, " {answer}"),))
    return add_supervised_task(
        name,
        jsonl_source(name, splits, ["question", "answer"]),
        preprocessors=[words] if calculator else [without_calculator, words],
        metric_fns=[exact_match_number],
    )


def without_calculator(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Takes `<<…>>` out of the field `answer`."""
    return dataset.map(
        lambda example: {**example, "answer": tf.strings.regex_replace(example["answer"], "<<[^<>]*>>", "")},
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
