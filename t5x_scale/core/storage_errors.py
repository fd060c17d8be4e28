"""What the storage library raised, in a line: Orbax and TensorStore speak in pages, and of their own insides.

And what it says of the bytes: that they are not what was written, or only that they cannot be had, for now or for us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator

from t5x_scale.core.errors import OneLineError, UnavailableError, UserError, describe_unreadable, first_line

_SYSTEM_ERROR = re.compile(r"\[os_error_code='(\d+)'")
# A file, or what a database of files calls a part of an array; the innermost is said last.
_FILE = re.compile(r"(?:local file \"|\"gs:/)([^\"]+[^\"/])\"")
_PART = re.compile(r"\"([^\"]+)\" in OCDBT database")
_AWAY_STATUSES = {
    "UNAVAILABLE": "cannot be reached",
    "DEADLINE_EXCEEDED": "does not come in time",
    "ABORTED": "cannot be reached",
    "RESOURCE_EXHAUSTED": "cannot be read now",
}
_STATUSES = {
    "NOT_FOUND": "is missing",
    "OUT_OF_RANGE": "is cut short",
    "DATA_LOSS": "is damaged",
    "FAILED_PRECONDITION": "is not what was written",
    "INVALID_ARGUMENT": "is not what was written",
    "PERMISSION_DENIED": "may not be read",
    "UNAUTHENTICATED": "may not be read",
    **_AWAY_STATUSES,
}
_STATUS = re.compile(rf"\b({'|'.join(_STATUSES)}): ")
_AWAY = re.compile(rf"^({'|'.join(_AWAY_STATUSES)}): ")
# As gRPC says it, and gcsfs.
_REFUSED = re.compile("^(PERMISSION_DENIED|UNAUTHENTICATED|Forbidden): ")
# Of networks, of file systems behind them, and of a machine that is short of something: a sector that cannot be read
# (EIO) is none of them.
_AWAY_NUMBERS = frozenset(
    getattr(errno, name)
    for name in (
        *("ETIMEDOUT", "ETIME", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE", "ENOTCONN", "ESHUTDOWN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ENOLINK", "ESTALE", "ENOLCK"),
        *("EAGAIN", "EINTR", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"),
    )
    if hasattr(errno, name)
)
# Libraries that gcsfs hands on the errors of, with the status of HTTP where there is one.
_NETWORK = ("aiohttp", "gcsfs", "google", "requests", "urllib3")
_STORES = ("aiohttp", "gcsfs", "google")
_AWAY_HTTP = frozenset({408, 429, *range(500, 505)})


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
    if isinstance(error, OSError) and error.strerror:
        name = f"{_short(os.fspath(error.filename))}: " if isinstance(error.filename, str | os.PathLike) else ""
        return f"{name}{error.strerror}"
    if isinstance(error, ValueError | KeyError | TypeError | AttributeError | RecursionError):
        return first_line(ValueError(describe_unreadable(error))) or type(error).__name__
    return first_line(error) or type(error).__name__


def find_refusal(error: BaseException) -> BaseException | None:
    """Of an error and its causes the one that says that somebody may not read, which says nothing of what is there."""
    return next((one for one in _chain(error) if _is_refusal(one)), None)


def find_absence(error: BaseException) -> BaseException | None:
    """Of an error and its causes the one that says that the storage is away, which says nothing of what is there."""
    return next((one for one in _chain(error) if _is_away(one)), None)


def explain(error: Exception, what: str) -> Exception:
    """What an error that came of reading `what` says of it.

    Returns:
      An UnavailableError where the storage is away, a UserError where it refuses, or cannot be listed; otherwise the
      error itself: damage, what is a UserError already, want of memory, or a mistake in the program.
    """
    if isinstance(error, UnavailableError | MemoryError) or _is_of(error, "jax"):
        return error
    if absence := find_absence(error):
        return UnavailableError(f"{what} cannot be read, as the storage does not answer: {describe_read(absence)}")
    if isinstance(error, UserError):
        return error
    if refusal := find_refusal(error):
        return UserError(f"{what} cannot be read, and may be sound: {describe_read(refusal)}")
    if isinstance(error, OneLineError) or not isinstance(error, OSError):
        return error
    return UserError(f"{what} cannot be read: {describe_read(error)}")


def explain_last(error: BaseException) -> UserError | None:
    """What there is to say of an error that ends a command; None for what needs a traceback.

    Returns:
      An UnavailableError where the storage is away, otherwise what is a UserError already, or one where the system
      names a file and what is wrong with it (that it is missing is for whoever asks for it to say), or storage refuses.
    """
    if isinstance(error, UnavailableError):
        return error
    absence = find_absence(error)
    if absence is not None and _is_of_storage(absence):
        reason = error if isinstance(error, UserError) else _name_file(absence) or describe_read(absence)
        return UnavailableError(f"{reason}; the storage does not answer: the same command goes on once it does")
    if isinstance(error, UserError):
        return error
    if isinstance(error, FileNotFoundError):
        return None
    if reason := _name_file(error):
        return UserError(f"cannot read or write {reason}")
    refusal = find_refusal(error)
    return UserError(f"the storage refuses: {describe_read(refusal)}") if refusal and _is_of_storage(refusal) else None


def _is_of_storage(error: BaseException) -> bool:
    """Whether it cannot come of talking to somebody else: to other processes, or to the platform."""
    if isinstance(error, OSError) or _is_of(error, *_NETWORK):
        return bool(_name_file(error)) or _is_of(error, *_STORES)
    return True


def _name_file(error: BaseException) -> str:
    """The file that the system names, and what is wrong with it; "" where it names none."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | bytes | os.PathLike):
        return ""
    return f"{os.fsdecode(error.filename)}: {error.strerror or error}"


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Raises what `explain` makes of the errors of reading `what`."""
    try:
        yield
    except Exception as error:
        found = explain(error, what)
        if found is error:
            raise
        raise found from error


def _is_away(error: BaseException) -> bool:
    code = _SYSTEM_ERROR.search(str(error))
    if code or isinstance(error, OSError):
        number = int(code[1]) if code else error.errno
        if number in _AWAY_NUMBERS or isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
            return True
    if _is_of(error, *_NETWORK):
        status = _find_status(error)
        return status in _AWAY_HTTP or (status is None and not _is_login(error))
    return bool(_AWAY.match(str(error))) and not _is_of(error, "jax")


def _is_refusal(error: BaseException) -> bool:
    if isinstance(error, PermissionError) or _REFUSED.match(str(error)):
        return True
    # What the storage refuses for another reason (a request that makes no sense to it) is not damage either.
    return _is_of(error, *_NETWORK) and (_find_status(error) is not None or _is_login(error))


def _is_of(error: BaseException, *libraries: str) -> bool:
    return any(kind.__module__.split(".")[0] in libraries for kind in type(error).__mro__)


def _is_login(error: BaseException) -> bool:
    return type(error).__module__.startswith("google.auth") and type(error).__name__ != "TransportError"


def _find_status(error: BaseException) -> int | None:
    """The status of HTTP of a network library's error."""
    for status in (getattr(error, name, None) for name in ("code", "status")):
        with contextlib.suppress(TypeError, ValueError):
            return int(status)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, and so on; what was left out on purpose is not looked at."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _short(path: str) -> str:
    """The last two parts of a path: the step stands before them in every message."""
    return "/".join(path.rstrip("/").split("/")[-2:])
