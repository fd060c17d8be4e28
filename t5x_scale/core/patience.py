"""Reading storage until it answers: what is away is asked again some times, and is never taken for what is missing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from t5x_scale.core.errors import StillAwayError, UnavailableError
from t5x_scale.core.storage_errors import explain

logger = logging.getLogger(__name__)

# Between one reading and the next. Clients of object stores have tried for minutes before they raise.
WAITS_SECONDS = (1.0, 4.0, 16.0)
_Result = TypeVar("_Result")


def _keep(error: Exception | None) -> Exception | None:
    return error


def read_patiently(
    read: Callable[[], _Result], what: str, share: Callable[[Exception | None], Exception | None] = _keep
) -> _Result:
    """Calls `read`, and again where the storage was away.

    Args:
      read: changes nothing. What reads patiently itself may be called in it: it is not waited for twice.
      what: is read, for the messages.
      share: makes the error of one process, or None, that of all of them; called once after each reading.

    Returns:
      What `read` returned.

    Raises:
      StillAwayError: the storage does not answer.
      UserError: it refuses, or cannot be read for another reason of the system's.
    """
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
        is_away = isinstance(error, UnavailableError) and not isinstance(error, StillAwayError)
        wait = next(waits, None) if is_away else None
        if wait is None:
            result = ()  # Whoever takes another step needs the memory.
            if is_away:
                raise StillAwayError(f"{error}; {StillAwayError.CONCLUSION}") from error
            raise error
        logger.warning("%s; trying again in %g s", error, wait)
        time.sleep(wait)
