"""Errors written for the person who has to mend them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
