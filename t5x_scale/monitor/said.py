"""Keeps what a run warns of, so that its record tells of failed saves and fallbacks as its terminal did."""

from __future__ import annotations

import logging
from collections.abc import Callable

from t5x_scale.monitor.writers import MetricWriters

FALLBACK, FAILED_SAVE, WARNING = "fallback", "failed_save", "warning"
# By words of the warning: those who warn know nothing of events.
_KINDS = {"Falling back": FALLBACK, "NOT saved": FAILED_SAVE}
_PROJECT = "t5x_scale"
# What these say is an event already.
_TOLD_OTHERWISE = f"{_PROJECT}.monitor"
_LONGEST = 1000


class Said(logging.Handler):
    """Turns warnings of this project into events, within its context. What is said before `connect` waits for it."""

    def __init__(self, step: Callable[[], int]):
        """`step` gives the steps done."""
        super().__init__(logging.WARNING)
        self._step = step
        self._writers: MetricWriters | None = None
        self._waiting: list[tuple[str, int, str]] = []

    def connect(self, writers: MetricWriters) -> None:
        """Where events go from now on."""
        self._writers = writers
        while self._waiting:
            self._put(*self._waiting.pop(0))

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`."""
        if logging.lastResort is not None and not logging.getLogger().handlers:
            # With a handler there is none of last resort any more, and the terminal is to be told, too.
            logging.lastResort.handle(record)
        if record.name.startswith(_TOLD_OTHERWISE):
            return
        text = record.getMessage()[:_LONGEST]
        kind = next((kind for words, kind in _KINDS.items() if words in text), WARNING)
        self._put(kind, self._step(), text)

    def __enter__(self) -> Said:
        logging.getLogger(_PROJECT).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger(_PROJECT).removeHandler(self)

    def _put(self, kind: str, step: int, text: str) -> None:
        if self._writers is None:
            self._waiting.append((kind, step, text))
        else:
            self._writers.event(kind, step, text=text)
