"""Reading storage until it answers, with one outcome for all processes of a run.

Each process reads for itself, and none may raise while the others go on to where they wait for it: an error in one is
the same line in all. Storage that is away is asked again some times; then the run stops, with nothing changed, and the
same command resumes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from t5x_scale.checkpoint import layout, multihost
from t5x_scale.core import files
from t5x_scale.core.patience import read_patiently

_Result = TypeVar("_Result")


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
    return read_patiently(read, what, multihost.share_error)


def list_together(directory: files.Path) -> list[int]:
    """`layout.list_steps` of process 0, on every process. All processes must call it."""

    def read() -> list[int]:
        return layout.list_steps(directory) if multihost.is_primary() else []

    return multihost.share_steps(read_together(read, f"the list of checkpoints in {directory}"))
