"""Reading storage until it answers, with one outcome for all processes of a run.

Each process reads for itself, and none may raise while the others go on to where they wait for it: an error in one is
the same line in all. Storage that is away is asked again some times; then the run stops, with nothing changed, and the
same command resumes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from t5x_scale.checkpoint import layout, multihost
from t5x_scale.checkpoint.layout import LOGGER
from t5x_scale.checkpoint.storage_errors import explain
from t5x_scale.core import files
from t5x_scale.core.errors import UnavailableError

# Between one reading and the next. Clients of object stores have tried for minutes before they raise.
WAITS_SECONDS = (1.0, 4.0, 16.0)
_CONCLUSION = "nothing was changed, and the same command goes on once it does"
_Result = TypeVar("_Result")
_Share = Callable[[Exception | None], Exception | None]


def read_together(read: Callable[[], _Result], what: str) -> _Result:
    """Calls `read` in every process, and ends alike in all. All processes must call it.

    Args:
      read: what one process does for itself; no process waits for another in there. Called again where the storage
        was away.
      what: is read, for the messages.

    Returns:
      What `read` returned in this process.

    Raises:
      DamagedError: what is there is not what was written, in some process.
      UnavailableError: the storage does not answer some process.
      UserError: some process may not read it, or somebody has to mend something else.
    """
    return _read(read, what, multihost.share_error)


def read_alone(read: Callable[[], _Result], what: str) -> _Result:
    """`read_together` for what a single process reads, whatever the others do."""
    return _read(read, what, lambda error: error)


def list_together(directory: files.Path) -> list[int]:
    """`layout.list_steps` of process 0, on every process. All processes must call it."""

    def read() -> list[int]:
        return layout.list_steps(directory) if multihost.is_primary() else []

    return multihost.share_steps(read_together(read, f"the list of checkpoints in {directory}"))


def _read(read: Callable[[], _Result], what: str, share: _Share) -> _Result:
    result: Sequence[_Result] = ()
    waits = iter(WAITS_SECONDS)
    while True:
        failure = None
        if not result:
            try:
                result = (read(),)
            except Exception as error:
                failure = explain(error, what)
                if failure is not error:
                    failure.__cause__ = error
        # The same in all processes: those that have read wait for those that have not.
        error = share(failure)
        if error is None:
            return result[0]
        # What reads until the storage answers may do so within another reading: it has been waited for.
        is_away = isinstance(error, UnavailableError) and _CONCLUSION not in str(error)
        wait = next(waits, None) if is_away else None
        if wait is None:
            result = ()  # Whoever takes another step needs the memory.
            raise _conclude(error) if is_away else error
        LOGGER.warning("%s; trying again in %g s", error, wait)
        time.sleep(wait)


def _conclude(error: Exception) -> UnavailableError:
    last = UnavailableError(f"{error}; {_CONCLUSION}")
    last.__cause__ = error
    return last
