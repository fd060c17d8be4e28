"""A line that is said even by a process that was ended by force.

JAX's runtime aborts a process whose peers are gone, from a thread of its own and with a page of C++: nothing in
Python gets to run. So a shell waits at the end of a pipe, and speaks when the pipe closes without a good-bye.
"""

from __future__ import annotations

import contextlib
import subprocess

# In a session of its own and deaf, the shell outlives what is meant for the whole group, or for all of a machine.
_SCRIPT = """
trap "" INT TERM HUP
line=
while read -r next; do line=$next; done
[ -z "$line" ] || printf "%s\\n" "$line" >&2
"""


class LastWords:
    """Says a line on standard error if this process ends before `cancel`.

    Args:
      line: what is said; `change` puts another in its place.
    """

    def __init__(self, line: str):
        self._shell: subprocess.Popen | None = None
        # Without a shell nothing is lost but the line.
        with contextlib.suppress(OSError):
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.change(line)

    def change(self, line: str) -> None:
        """From now on `line` is what will be said; nothing if it is empty."""
        if self._shell is not None:
            with contextlib.suppress(OSError):
                self._shell.stdin.write(f"{line}\n".encode())
                self._shell.stdin.flush()

    def cancel(self) -> None:
        """Nothing will be said. May be called again."""
        self.change("")
        shell, self._shell = self._shell, None
        if shell is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                shell.communicate(timeout=5.0)
