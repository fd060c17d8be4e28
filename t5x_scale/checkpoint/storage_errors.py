"""What the storage library raised, in a line: Orbax and TensorStore speak in pages, and of their own insides."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from t5x_scale.core.errors import describe_unreadable
from t5x_scale.core.zarr_arrays import first_line

_SYSTEM_ERROR = re.compile(r"\[os_error_code='(\d+)'")
# A file, or what a database of files calls a part of an array; the innermost is said last.
_FILE = re.compile(r"local file \"([^\"]+[^\"/])\"")
_PART = re.compile(r"\"([^\"]+)\" in OCDBT database")
_STATUSES = {
    "NOT_FOUND": "is missing",
    "OUT_OF_RANGE": "is cut short",
    "DATA_LOSS": "is damaged",
    "FAILED_PRECONDITION": "is not what was written",
    "INVALID_ARGUMENT": "is not what was written",
    "PERMISSION_DENIED": "may not be read",
    "UNAUTHENTICATED": "may not be read",
}
_STATUS = re.compile(rf"\b({'|'.join(_STATUSES)}): ")
_REFUSED = re.compile("^(PERMISSION_DENIED|UNAUTHENTICATED): ")


def describe_write(error: BaseException) -> str:
    """Why a save failed, in one line: in the system's words, where the storage library hands them on."""
    code = _SYSTEM_ERROR.search(str(error))
    return os.strerror(int(code[1])) if code else first_line(error) or type(error).__name__


def describe_read(error: BaseException) -> str:
    """Why arrays could not be read, in one line: `state/manifest.ocdbt is damaged`, where the file is told."""
    for one in _chain(error):
        status, names = _STATUS.search(str(one)), _FILE.findall(str(one)) or _PART.findall(str(one))
        if status and names:
            return f"{_short(names[-1])} {_STATUSES[status[1]]}"
    if isinstance(error, OSError) and error.filename:
        return f"{_short(os.fspath(error.filename))}: {error.strerror or type(error).__name__}"
    if isinstance(error, ValueError | KeyError | TypeError | AttributeError | RecursionError):
        return first_line(ValueError(describe_unreadable(error))) or type(error).__name__
    return first_line(error) or type(error).__name__


def find_refusal(error: BaseException) -> BaseException | None:
    """Of an error and its causes the one that says that somebody may not read, which says nothing of what is there."""
    refusals = (one for one in _chain(error) if isinstance(one, PermissionError) or _REFUSED.match(str(one)))
    return next(refusals, None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _short(path: str) -> str:
    """The last two parts of a path: the step stands before them in every message."""
    return "/".join(path.rstrip("/").split("/")[-2:])
