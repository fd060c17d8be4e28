"""Prompts: read from files, and turned into the tokens a model begins with."""

from __future__ import annotations

import json
import os

from t5x_scale.core.errors import UserError, check_choice, did_you_mean
from t5x_scale.core.files import Path, to_path
from t5x_scale.data.vocabulary import Vocabulary

FIELD = "prompt"
BEGINNINGS = ("eod", "bos")


def read_prompts(path: str | os.PathLike) -> list[str]:
    """The prompts of a file: with the suffix `.jsonl` objects with a "prompt", else one prompt a line.

    Blank lines are skipped; an empty prompt, or one of several lines, needs the JSON form.

    Raises:
      UserError: there is no such file, it holds no prompt, or a line of it is not what it should be.
    """
    file = to_path(path)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"no such file of prompts: {file}{_near(file)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UserError(f"cannot read prompts from {file}: {error.strerror or error}") from error
    # Not splitlines: it would also split at characters that may stand within a line.
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{file} holds no prompts")
    if file.suffix == ".jsonl":
        return [_prompt_of(line, f"{file}, line {number}") for number, line in lines]
    return [line for _, line in lines]


def _prompt_of(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get(FIELD), str):
        near = did_you_mean(FIELD, record) if isinstance(record, dict) else ""
        raise UserError(f'{where} is not an object with a string "{FIELD}"{near}')
    return record[FIELD]


def _near(file: Path) -> str:
    return did_you_mean(file.name, [entry.name for entry in file.parent.iterdir()]) if file.parent.is_dir() else ""


def encode_prompts(
    texts: list[str], vocabulary: Vocabulary, begin: str | None = None, mode: str | None = None
) -> list[list[int]]:
    """The tokens of prompts.

    A prompt is taken as it is, from the middle of a document for all the model knows. An empty one begins with the
    token that separates documents (`[eod]`, or the vocabulary's beginning of a sequence): what a model has seen
    after it is how texts begin.

    Args:
      texts: the prompts.
      vocabulary: of the model.
      begin: `eod` or `bos`: this token comes before every prompt.
      mode: a mode of UL2, such as `[S2S]`: its token comes next.

    Raises:
      UserError: the vocabulary has no such token, or none to begin an empty prompt with.
    """
    start: list[int] = []
    if begin is not None:
        check_choice("begin", begin, BEGINNINGS)
        start.append(_beginning(vocabulary, begin))
    if mode is not None:
        start.append(vocabulary.mode_token_id(mode))
    prompts = [start + ids for ids in vocabulary.encode_batch(texts)]
    return [prompt or [_beginning(vocabulary, *BEGINNINGS)] for prompt in prompts]


def _beginning(vocabulary: Vocabulary, *names: str) -> int:
    ids = {"eod": vocabulary.eod_id, "bos": vocabulary.bos_id}
    found = next((ids[name] for name in names if ids[name] is not None), None)
    if found is None:
        raise UserError(f"vocabulary '{vocabulary.spec}' has no token {' or '.join(names)} to begin a prompt with")
    return found
