"""What went wrong with checkpoints, for the record of the run: it may happen before the record is open."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

NOT_SAVED, DAMAGED, FALLBACK = "save_failed", "damaged", "fallback"

# Called with a kind and a step, and `reason` by name; such as `MetricWriters.event`.
Tell = Callable[..., None]


class Events:
    """Tells, in order and from any thread; keeps what is told until somebody listens."""

    def __init__(self) -> None:
        self._tell: Tell | None = None
        self._kept: list[tuple[str, int, str]] = []
        self._lock = threading.Lock()

    def tell(self, kind: str, step: int, reason: str) -> None:
        """Something happened to the checkpoint of a step."""
        with self._lock:
            if self._tell is None:
                self._kept.append((kind, step, reason))
            else:
                self._tell(kind, step, reason=reason)

    def of(self, kind: str) -> Callable[[int, str], None]:
        """`tell` of one kind."""
        return functools.partial(self.tell, kind)

    def report_to(self, tell: Tell) -> None:
        """`tell` hears what was kept, and everything from now on."""
        with self._lock:
            self._tell = tell
            for kind, step, reason in self._kept:
                tell(kind, step, reason=reason)
            self._kept.clear()
