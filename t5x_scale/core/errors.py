"""Errors written for the person who has to mend them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class UserError(Exception):
    """Something the user can put right.

    The command line prints the message as one line, without a traceback, and exits with 1. A message
    says what is wrong, where, and the nearest right thing.
    """


def did_you_mean(name: str, choices: Iterable[str], limit: int = 3) -> str:
    """Returns `" (did you mean 'a' or 'b'?)"`, or `""` when nothing among `choices` is near `name`."""
    near = difflib.get_close_matches(name, list(choices), n=limit, cutoff=0.6)
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
