"""Instruction tasks as in Flan: examples of any supervised data set, put into words in several ways.

from tasks.instructions import register_instructions
from tasks.mixtures import register_proportional_mixture

register_instructions(
    "nli",
    {"train": "nli/train.jsonl", "validation": "nli/dev.jsonl"},
    templates=[
        ("{premise}\\nDoes it follow that {hypothesis}?", " {label}"),
        ("Premise: {premise}\\nHypothesis: {hypothesis}\\nEntailed, yes or no?", " {label}"),
    ],
    choices={"label": ["yes", "no"]},
)
# Every task as often as it has examples, but none more often than one of 3,000.
register_proportional_mixture("my_flan", ["nli", "summaries"], maximum=3000)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import seqio

from tasks.common import Patterns, add_supervised_task
from tasks.json_lines import Policy
from tasks.jsonl import jsonl_source
from tasks.metrics import exact_match
from tasks.phrasing import Choices, Template, fields_of, phrase


def register_instructions(
    name: str,
    source: seqio.DataSource | Patterns | Mapping[str, Patterns],
    templates: Sequence[Template],
    *,
    choices: Choices | None = None,
    policy: Policy = Policy(),
    metric_fns: Sequence[Callable] = (exact_match,),
) -> seqio.Task:
    """Registers a supervised task whose examples are put into words by templates.

    Inputs and targets are joined with nothing between them: let the targets begin with a blank or a newline.

    Args:
      name: the task's name.
      source: of JSON lines: split to glob or globs, or globs alone, the split `train`. Or any SeqIO source of
        dictionaries of scalars, such as `seqio.TfdsDataSource(tfds_name="super_glue/rte:1.0.2")`.
      templates: pairs (inputs, targets) with `{field}` in braces. Which one an example gets depends on its text
        alone: it is always the same one.
      choices: {field: words for its values 0, 1, …, or {value: word}}, for class labels.
      policy: of bad lines, for JSON lines.
      metric_fns: functions of (targets, predictions).

    Raises:
      ValueError: no template, a template that is not one, or choices of a field that none mentions.
    """
    templates, fields = tuple(map(tuple, templates)), fields_of(templates)
    if unknown := sorted(set(choices or {}) - set(fields)):
        raise ValueError(f"choices for '{unknown[0]}', which no template mentions; they have {fields}")
    if not isinstance(source, seqio.DataSource):
        source = jsonl_source(name, source, fields, policy=policy, numbers=True)
    put_into_words = functools.partial(phrase, templates=templates, choices=choices)
    return add_supervised_task(name, source, preprocessors=[put_into_words], metric_fns=metric_fns)
