"""A line that is said even by a process that was ended by force.

JAX's runtime aborts a process whose peers are gone, from a thread of its own and with a page of C++: nothing in
Python gets to run. So a shell waits at the end of a pipe, and speaks when the pipe closes without a good-bye.
"""

from __future__ import annotations

import contextlib
import subprocess

# In a session of its own and deaf, the shell outlives what is meant for the whole group, or for all of a machine.
_SCRIPT = 'trap "" INT TERM HUP; read -r word; [ "$word" = done ] || printf "%s\\n" "$1" >&2'


class LastWords:
    """Says `line` on standard error if this process ends before `cancel`."""

    def __init__(self, line: str):
        self._shell: subprocess.Popen | None = None
        # Without a shell nothing is lost but the line.
        with contextlib.suppress(OSError):
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "t5x_scale", line],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def cancel(self) -> None:
        """Nothing will be said. May be called again."""
        shell, self._shell = self._shell, None
        if shell is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                shell.communicate(b"done\n", timeout=5.0)
