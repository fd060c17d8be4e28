"""Errors written for the person who has to mend them."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

# What moves the cursor, rings, or turns the direction of writing: names from files of strangers may hold it.
_NOT_PRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 4000
_MAX_REASON = 400
# Comparing names takes time with the square of their length.
_MAX_NAME, _MAX_CHOICES = 200, 10_000


class OneLineError(Exception):
    """An error whose message is one line that can be printed, whatever the names in it are made of."""

    def __init__(self, message: object = ""):
        super().__init__(to_one_line(str(message)))


class UserError(OneLineError):
    """Something the user can put right.

    The command line prints the message as one line, without a traceback, and exits with 1. A message
    says what is wrong, where, and the nearest right thing.
    """


class UnavailableError(UserError):
    """The storage does not answer, which says nothing of what it holds: the command line exits with 75, resumable."""


class StillAwayError(UnavailableError):
    """The storage does not answer, and has been waited for: whoever asked, and whoever asked them, waits no more."""

    CONCLUSION = "nothing was changed, and the same command goes on once it does"


def to_one_line(text: str) -> str:
    """`text` with spaces for ends of lines, other control characters escaped, and cut where nobody reads on."""
    text = " ".join(text[:_LONGEST].splitlines()) + ("..." if len(text) > _LONGEST else "")
    return _NOT_PRINTED.sub(lambda match: ascii(match[0])[1:-1], text)


def first_line(error: BaseException) -> str:
    """The first line of a storage library's message, cut to what a person reads: the rest is for the traceback."""
    lines = str(error).strip().splitlines()
    text = lines[0].split(" [tensorstore_spec")[0].split(" [source locations")[0] if lines else ""
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."


def describe_unreadable(error: Exception) -> str:
    """What is wrong with a document, in words of whoever keeps it, from what reading or taking it apart has raised."""
    if isinstance(error, FileNotFoundError):
        return "it is missing"
    if isinstance(error, IsADirectoryError):
        return "it is a directory and no file"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"it is no text: byte {error.start} is not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON: {error}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}" if error.args else "something is missing in it"
    if isinstance(error, TypeError | AttributeError):
        return "something in it is of another kind than was written"
    return str(error)


def did_you_mean(name: str, choices: Iterable[str], limit: int = 3) -> str:
    """Returns `" (did you mean 'a' or 'b'?)"`, or `""` when nothing among `choices` is near `name`."""
    if len(name) > _MAX_NAME:
        return ""
    # A name itself: of a link that leads nowhere, or of a file that was found and is not what was wanted.
    short = (choice for choice in choices if len(choice) <= _MAX_NAME and choice != name)
    near = difflib.get_close_matches(name, list(itertools.islice(short, _MAX_CHOICES)), n=limit, cutoff=0.6)
    if not near:
        return ""
    return f" (did you mean {' or '.join(repr(n) for n in near)}?)"


def check_choice(name: str, value: object, choices: Sequence[Any]) -> None:
    """Checks a setting that has one of a few values.

    Raises:
      UserError: naming the setting and the nearest choice, or all of them where none is near.
    """
    if value not in choices:
        near = did_you_mean(str(value), [choice for choice in choices if isinstance(choice, str)])
        raise UserError(f"{name} is {value!r}{near or '; known are ' + ', '.join(map(str, choices))}")
