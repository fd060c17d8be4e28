"""How far a build is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from t5x_scale.data.building.parts import PartInfo

# Seconds between two lines where there is no terminal.
_INTERVAL = 30.0


class Progress:
    """Counts and shows what was done. A context manager: the bar stands while the block runs.

    Attributes:
      documents, tokens, characters: read so far, parts of an earlier build included.
      new_documents, new_tokens: of these, what this build made.
    """

    def __init__(
        self,
        name: str,
        total_characters: int | None = None,
        *,
        total_documents: int | None = None,
        show: bool = False,
        stream: TextIO | None = None,
    ):
        """Args:
        name: of the store.
        total_characters, total_documents: of the source (bytes of text files); None where nobody knows.
        show: whether anything is written at all.
        stream: where to; stderr when None.
        """
        self.documents = self.tokens = self.characters = 0
        self._name = name
        self._total = total_characters or total_documents
        self._by_documents = not total_characters
        self._show = show
        self._stream = stream or sys.stderr
        self._bar: Bar | None = None
        self.new_documents = self.new_tokens = 0
        self._begun = self._last_line = time.monotonic()
        self._parts = self._assembled = 0

    def __enter__(self) -> Progress:
        self._begun = self._last_line = time.monotonic()
        if self._show and self._stream.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[counts]}"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(file=self._stream), transient=True)
            self._task = self._bar.add_task(f"tokenising {self._name}", total=self._total, counts="")
            self._bar.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def add(self, info: PartInfo, *, is_new: bool) -> None:
        """A part is there; `is_new` when this build made it."""
        self.documents += info.counts.get("read", 0)
        self.tokens += info.tokens
        self.characters += info.counts.get("characters", 0)
        if is_new:
            self.new_documents += info.counts.get("read", 0)
            self.new_tokens += info.tokens
        self._say(self._done, self._describe())

    def begin_assembly(self, parts: int) -> None:
        """All parts are there and are joined now."""
        self._parts, self._assembled = parts, 0
        if self._bar is not None:
            self._bar.reset(self._task, description=f"assembling {self._name}", total=parts, counts="")

    def add_assembled(self, info: PartInfo) -> None:
        """A part was joined to the store."""
        self._assembled += 1
        self._say(self._assembled, f"{self._assembled} of {self._parts} parts assembled")

    @property
    def _done(self) -> int:
        return self.documents if self._by_documents else self.characters

    def _describe(self) -> str:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        rates = f"{self.new_documents / seconds:,.0f} documents/s, {self.new_tokens / seconds:,.0f} tokens/s"
        share = f"{min(self._done / self._total, 1):.1%}, " if self._total else ""
        return f"{share}{self.documents:,} documents, {self.tokens:,} tokens ({rates})"

    def _say(self, completed: int, counts: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, counts=counts)
        elif self._show and time.monotonic() - self._last_line > _INTERVAL:
            self._last_line = time.monotonic()
            print(f"{self._name}: {counts}", file=self._stream, flush=True)
