"""Parts of a task that several machines can read at once.

*Files*, where reading them one after another is reading the task: its source is a function that reads files in order
and takes their globs as the keyword `patterns` (those of the folder `tasks` do), and its preprocessors only rename.

*Shards* of the source, as SeqIO deals them to hosts. SeqIO reads the files of a whole source in turns, a few examples
of each, so shards one after another are another order of the same documents; and preprocessors that draw random
numbers or join examples give other documents.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from t5x_scale.core.errors import UserError
from t5x_scale.data.building.interface import Record
from t5x_scale.data.seqio_source.libraries import first_line, seqio, tf
from t5x_scale.data.seqio_source.records import read_records
from t5x_scale.data.seqio_source.registry import get_task
from t5x_scale.data.vocabulary import Vocabulary


def list_files(task_name: str, split: str) -> list[str]:
    """The files of a split that can be read one by one, in order; `[]` where the task is not of that kind.

    Raises:
      UserError: there is no such task, or nothing matches one of its globs.
    """
    task = get_task(task_name)
    patterns = _patterns(task, split)
    if patterns is None or not all(map(_only_renames, task.preprocessors)):
        return []
    files = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            found = sorted(tf.io.gfile.glob(pattern))
        except tf.errors.OpError as error:
            raise UserError(f"cannot list the files of task '{task_name}': {first_line(error)}") from error
        if not found:
            raise UserError(f"cannot read task '{task_name}', split '{split}': no file matches {pattern}")
        files += found
    return files


def iterate_file(task_name: str, split: str, file: str, vocabulary: Vocabulary) -> Iterator[Record]:
    """The records of one of `list_files`.

    Raises:
      UserError: as `iterate_records`; a file without documents is none.
    """
    task = get_task(task_name)
    function = task.source._dataset_fn
    keywords = {**function.keywords, "patterns": {split: [_escape(file)]}}
    source = seqio.FunctionDataSource(functools.partial(function.func, *function.args, **keywords), splits=[split])
    part = seqio.Task(task.name, source, task.output_features, preprocessors=task.preprocessors)
    return read_records(part, split, vocabulary)


def count_shards(task_name: str, split: str) -> int:
    """Shards of the source of a task, at least 1.

    Raises:
      UserError: there is no such task, or its files cannot be listed.
    """
    try:
        return max(1, len(get_task(task_name).source.list_shards(split)))
    except (tf.errors.OpError, OSError, ValueError, AssertionError, LookupError) as error:
        raise UserError(f"cannot list the shards of task '{task_name}': {first_line(error)}") from error


def iterate_shard(task_name: str, split: str, shard: int, shards: int, vocabulary: Vocabulary) -> Iterator[Record]:
    """The records of one of `count_shards` shards.

    Raises:
      UserError: as `iterate_records`; a shard without documents is none.
    """
    return read_records(get_task(task_name), split, vocabulary, shard=shard, shards=shards)


def _patterns(task: seqio.Task, split: str) -> Any:
    function = getattr(task.source, "_dataset_fn", None)
    patterns = function.keywords.get("patterns") if isinstance(function, functools.partial) else None
    return patterns.get(split) if isinstance(patterns, Mapping) else None


def _only_renames(step: Any) -> bool:
    return isinstance(step, functools.partial) and step.func is seqio.preprocessors.rekey


def _escape(file: str) -> str:
    """A glob that matches this file alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in file)
