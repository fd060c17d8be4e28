"""Source code: JSON lines with text, path and licence, or a folder of checked-out repositories.

from tasks.source_code import register_code, register_code_files

register_code("my_code", {"train": "code/train-*.jsonl.gz", "validation": "code/held_out.jsonl.gz"})
register_code_files("my_python", {"train": "repositories", "validation": "held_out"}, languages=["python"])

As PaLM did (arXiv 2204.02311, section 3): languages are told by the extension of the file, copyleft is left out.
It also removed near-duplicates: that is done for any task when its store is built.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import seqio
import tensorflow as tf

from tasks.code_kinds import extension_of, extensions_of, is_copyleft
from tasks.common import Patterns, add_text_task, as_splits, make_dataset
from tasks.json_lines import Policy, read_objects, take_text
from tasks.left_out import LeftOut


def register_code(
    name: str,
    splits: Patterns | Mapping[str, Patterns],
    *,
    languages: Sequence[str] | None = None,
    text_field: str = "content",
    path_field: str = "path",
    licence_field: str = "license",
    copyleft: Literal["skip", "keep"] = "skip",
    unlicensed: Literal["skip", "keep"] = "skip",
    policy: Policy = Policy(),
) -> seqio.Task:
    """Registers a task over JSON lines, one file of code a line. The log says what was left out, and why.

    Args:
      name: the task's name.
      splits: split to glob or globs; globs alone are the split `train`.
      languages: keys of `code_kinds.EXTENSIONS`; all of them when None. Other extensions are left out.
      text_field, path_field: where the text and the path, or the file's name, stand.
      licence_field: where the licence stands: its name, an expression of names, or a list of names; one that is
        copyleft is enough to leave the file out.
      copyleft: what happens to files under such a licence.
      unlicensed: what happens to files whose licence is missing or empty.
      policy: of bad lines.

    Raises:
      ValueError: an unknown language or option.
    """
    for option, value in (("copyleft", copyleft), ("unlicensed", unlicensed)):
        if value not in ("skip", "keep"):
            raise ValueError(f"{option} must be 'skip' or 'keep', not '{value}'")
    patterns = as_splits(splits)
    read = functools.partial(
        _read_lines,
        name=name,
        patterns=patterns,
        extensions=extensions_of(languages),
        fields=(text_field, path_field, licence_field),
        skip=(copyleft == "skip", unlicensed == "skip"),
        policy=policy,
    )
    return add_text_task(name, seqio.FunctionDataSource(read, splits=tuple(patterns)))


def register_code_files(
    name: str, folders: str | Mapping[str, str], *, languages: Sequence[str] | None = None
) -> seqio.Task:
    """Registers a task over the files of code below a folder, one document a file, in the order of their paths.

    Files say nothing of their licence: put only what may be used below the folder. Hidden folders and links are left
    out; bytes that are not UTF-8 become U+FFFD, and files without text are left out: both are counted in the log.

    Args:
      name: the task's name.
      folders: split to folder, local or `gs://`; a folder alone is the split `train`.
      languages: keys of `code_kinds.EXTENSIONS`; all of them when None.

    Raises:
      ValueError: an unknown language.
    """
    folders = as_splits(folders)
    read = functools.partial(_read_folder, name=name, folders=folders, extensions=extensions_of(languages))
    return add_text_task(name, seqio.FunctionDataSource(read, splits=tuple(folders)))


def _read_lines(
    split: str,
    shuffle_files: bool,
    seed: int | None = None,
    *,
    name: str,
    patterns: Mapping[str, Patterns],
    extensions: Sequence[str],
    fields: tuple[str, str, str],
    skip: tuple[bool, bool],
    policy: Policy,
) -> tf.data.Dataset:
    del shuffle_files, seed  # Order is the reader's business.
    text_field, path_field, licence_field = fields

    def generate() -> Iterator[tuple[bytes]]:
        left_out = LeftOut(name, split)
        for place, value in read_objects(patterns[split], None, policy, left_out):
            text = take_text(value, text_field, place, policy, left_out)
            path = take_text(value, path_field, place, policy, left_out) if text is not None else None
            if path is None:
                continue
            reason = _why_not(path.decode(), value.get(licence_field), extensions, skip)
            if reason:
                left_out.add(reason, place)
                continue
            left_out.taken += 1
            yield (text,)
        left_out.log()

    return make_dataset(generate, ["text"])


def _why_not(path: str, licence: Any, extensions: Sequence[str], skip: tuple[bool, bool]) -> str:
    """The reason to leave a file out, or nothing."""
    skip_copyleft, skip_unlicensed = skip
    if extension_of(path) not in extensions:
        return "files in other languages"
    licences = [str(one) for one in (licence if isinstance(licence, list) else [licence]) if one]
    if not licences:
        return "files without a licence" if skip_unlicensed else ""
    return "files under copyleft" if skip_copyleft and any(map(is_copyleft, licences)) else ""


def _read_folder(
    split: str,
    shuffle_files: bool,
    seed: int | None = None,
    *,
    name: str,
    folders: Mapping[str, str],
    extensions: Sequence[str],
) -> tf.data.Dataset:
    del shuffle_files, seed  # Order is the reader's business.

    def generate() -> Iterator[tuple[bytes]]:
        left_out = LeftOut(name, split)
        for path in _walk(folders[split]):
            if extension_of(path) not in extensions:
                left_out.add("files in other languages", path)
                continue
            with tf.io.gfile.GFile(path, "rb") as stream:
                data = stream.read()
            text = data.decode(errors="replace").encode()
            if text != data:
                left_out.add("files with bytes replaced", path)
            if text.strip():
                left_out.taken += 1
                yield (text,)
            else:
                left_out.add("files without text", path)
        left_out.log()

    return make_dataset(generate, ["text"])


def _walk(folder: str) -> list[str]:
    """The files below a folder, sorted by path, without those in hidden folders."""
    if not tf.io.gfile.isdir(folder):
        raise FileNotFoundError(f"there is no folder {folder}")
    found = []
    # TensorFlow follows links to folders, round and round where they lead back.
    walk = tf.io.gfile.walk if "://" in folder else os.walk
    for parent, _, names in walk(folder):
        inner = parent.removeprefix(folder).strip("/").split("/")
        if not any(part.startswith(".") for part in inner):
            found += [os.path.join(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if not os.path.islink(path))
