"""Signs of life of a conversion: bytes done, bytes in all, and how fast."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Prints a line every few seconds, and one at the end; called with bytes done and bytes in all."""

    def __init__(self, what: str, every_seconds: float = 5.0, stream: TextIO | None = None):
        self._what, self._every = what, every_seconds
        self._stream = sys.stderr if stream is None else stream
        self._started = self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said < self._every and (done < total or now - self._started < self._every):
            return
        self._said = now
        speed = done / max(now - self._started, 1e-9)
        text = f"{self._what}: {done / 1e9:.2f} of {total / 1e9:.2f} GB, {speed / 1e6:.0f} MB/s"
        print(text, file=self._stream, flush=True)
