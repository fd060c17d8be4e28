"""JSON lines, one document a line with its text in one field: the Pile's form. Plain, `.gz` or `.zst`.

from tasks.jsonl import register_jsonl

register_jsonl("my_pile", {"train": "gs://bucket/pile/train/*.jsonl.zst", "validation": "pile/val.jsonl.zst"})
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import seqio
import tensorflow as tf

from tasks.common import Patterns, add_text_task, as_splits, make_dataset
from tasks.json_lines import Policy, Where, check_where, read_objects, take_text
from tasks.left_out import LeftOut

# As `meta.pile_set_name` has them.
PILE_SUBSETS = (
    "ArXiv", "BookCorpus2", "Books3", "DM Mathematics", "Enron Emails", "EuroParl", "FreeLaw", "Github",
    "Gutenberg (PG-19)", "HackerNews", "NIH ExPorter", "OpenSubtitles", "OpenWebText2", "PhilPapers", "Pile-CC",
    "PubMed Abstracts", "PubMed Central", "StackExchange", "USPTO Backgrounds", "Ubuntu IRC", "Wikipedia (en)",
    "YoutubeSubtitles",
)  # fmt: skip


def register_jsonl(
    name: str,
    splits: Patterns | Mapping[str, Patterns],
    *,
    text_field: str = "text",
    where: Where | None = None,
    bad_line: Literal["error", "skip"] = "error",
    bad_utf8: Literal["error", "replace", "skip"] = "error",
) -> seqio.Task:
    """Registers a task over JSON lines; nothing is read before the task is used.

        register_jsonl("papers", "pile/*.jsonl.zst", where={"meta": {"pile_set_name": ["ArXiv", "PubMed Central"]}})

    Empty lines are left out, and so are files without a line, which are counted. The log says at the end of a pass
    how many lines were left out, why, and where the first of them is.

    Args:
      name: the task's name.
      splits: split to glob or globs; globs alone are the split `train`. Files are read in order of name.
      text_field: the field that holds the text.
      where: takes only lines whose fields have these values: {field: value, list of values, or the same of a
        nested object's fields}.
      bad_line: a line that is not a JSON object with a string in `text_field`: `error`, which names file and line, or
        `skip`.
      bad_utf8: a line that is not UTF-8: `error`, `replace` bytes by U+FFFD, or `skip`.

    Raises:
      ValueError: an unknown policy, or a set in `where`.
    """
    source = jsonl_source(name, splits, [text_field], where=where, policy=Policy(bad_line, bad_utf8))
    return add_text_task(name, source, text_key=text_field)


def jsonl_source(
    name: str,
    splits: Patterns | Mapping[str, Patterns],
    fields: Sequence[str],
    *,
    where: Where | None = None,
    policy: Policy = Policy(),
    numbers: bool = False,
) -> seqio.FunctionDataSource:
    """Fields of JSON lines as texts, for a task of your own.

    Args:
      name: of the task, for the log.
      splits, where: as `register_jsonl`.
      fields: those that every line must have; the others are not read.
      policy: of bad lines.
      numbers: whether numbers and booleans are taken too, as JSON writes them.
    """
    if where is not None:
        check_where(where)
    patterns = as_splits(splits)
    read = functools.partial(
        _read, name=name, patterns=patterns, fields=tuple(fields), where=where, policy=policy, numbers=numbers
    )
    return seqio.FunctionDataSource(read, splits=tuple(patterns))


def register_pile(
    splits: Patterns | Mapping[str, Patterns],
    subsets: Sequence[str] = PILE_SUBSETS,
    *,
    prefix: str = "pile",
    bad_line: Literal["error", "skip"] = "error",
    bad_utf8: Literal["error", "replace", "skip"] = "error",
) -> dict[str, seqio.Task]:
    """Registers one task for each subset of the Pile, so that a run can give each its own share.

        register_pile({"train": "pile/train/*.jsonl.zst", "validation": "pile/val.jsonl.zst"}, ["ArXiv", "Pile-CC"])

    registers `pile_arxiv` and `pile_pile_cc`. Every task reads all the files when it is frozen: freeze them
    in parallel, or use `register_jsonl` for the whole Pile as it is mixed.

    Returns:
      {subset: task}.
    """
    return {
        subset: register_jsonl(
            f"{prefix}_{identifier(subset)}",
            splits,
            where={"meta": {"pile_set_name": subset}},
            bad_line=bad_line,
            bad_utf8=bad_utf8,
        )
        for subset in subsets
    }


def identifier(text: str) -> str:
    """`Gutenberg (PG-19)` -> `gutenberg_pg_19`: a name that SeqIO accepts."""
    words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    return "_".join(words)


def _read(
    split: str,
    shuffle_files: bool,
    seed: int | None = None,
    *,
    name: str,
    patterns: Mapping[str, Patterns],
    fields: Sequence[str],
    where: Where | None,
    policy: Policy,
    numbers: bool,
) -> tf.data.Dataset:
    del shuffle_files, seed  # Order is the reader's business.

    def generate() -> Iterator[tuple[bytes, ...]]:
        left_out = LeftOut(name, split)
        for place, value in read_objects(patterns[split], where, policy, left_out):
            # The first bad field decides, so that a line is counted once.
            texts = []
            for field in fields:
                text = take_text(value, field, place, policy, left_out, numbers=numbers)
                if text is None:
                    break
                texts.append(text)
            else:
                left_out.taken += 1
                yield tuple(texts)
        left_out.log()

    return make_dataset(generate, fields)
