"""The status line: one compact line, always in the same order, at most 120 columns.

On a terminal it is one line that changes in place; in a log it is one plain line at each call.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

MAX_COLUMNS = 120
_SEPARATOR = " | "
_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclasses.dataclass(frozen=True)
class Status:
    """What the line shows; None is shown as `-`, except that an unknown MFU is left out.

    Attributes:
      step: steps completed.
      total_steps: steps of the whole run.
      loss: of the newest step that is known, in nats a token.
      tokens_per_second: of the whole system.
      mfu: full-attention model FLOPs utilisation, 0 to 1.
      eta_seconds: until `total_steps`.
      data_wait_fraction: share of the time spent waiting for batches, 0 to 1.
      checkpoint_age_seconds: since the state that the newest checkpoint holds.
      remark: a few words at the end, such as which host is slow.
    """

    step: int
    total_steps: int
    loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    eta_seconds: float | None = None
    data_wait_fraction: float | None = None
    checkpoint_age_seconds: float | None = None
    remark: str = ""


def format_count(value: float) -> str:
    """Three significant digits and a suffix: `954`, `12.3k`, `1.23M`, `780B`, `1.50T`."""
    if not math.isfinite(value):
        return str(value)
    # The threshold is where three digits round up to the next suffix: 999,600 is 1.00M, not 1000k.
    scale, suffix = next((entry for entry in _SUFFIXES if abs(value) >= entry[0] * 0.9995), (1.0, ""))
    scaled = value / scale
    digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
    return f"{scaled:.{digits}f}{suffix}"


def format_duration(seconds: float) -> str:
    """The two largest units: `45s`, `3m12s`, `2h05m`, `4d07h`."""
    if not math.isfinite(seconds):
        return "-"
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def format_status(status: Status) -> str:
    """The line: `step  1200/20000 | loss 2.3456 | 12.3k tok/s | MFU 46.2% | ETA 2h05m | data 0.3% | ckpt 4m12s`."""
    return _SEPARATOR.join(f"{label} {value}" if label else value for label, value in _fields(status))[:MAX_COLUMNS]


def _fields(status: Status) -> list[tuple[str, str]]:
    total = str(status.total_steps)
    rate, age = status.tokens_per_second, status.checkpoint_age_seconds
    fields = [
        ("step", f"{status.step:>{len(total)}}/{total}"),
        ("loss", "-" if status.loss is None else _format_loss(status.loss)),
        ("", f"{'-' if rate is None else format_count(rate)} tok/s"),
        ("MFU", "" if status.mfu is None else f"{status.mfu:.1%}"),
        ("ETA", "-" if status.eta_seconds is None else format_duration(status.eta_seconds)),
        ("data", "-" if status.data_wait_fraction is None else f"{status.data_wait_fraction:.1%}"),
        ("ckpt", "-" if age is None else format_duration(age)),
        ("", status.remark),
    ]
    return [field for field in fields if field[1]]


def _format_loss(loss: float) -> str:
    return f"{loss:.4f}" if not math.isfinite(loss) or abs(loss) < 1e4 else f"{loss:.3e}"


class StatusLine:
    """Shows statuses and notes on a stream. With `enabled=False` (every process but the first) it does nothing."""

    def __init__(self, *, enabled: bool = True, stream: TextIO | None = None):
        self._enabled = enabled
        self._stream = stream if stream is not None else sys.stdout
        self._live: Live | None = None
        self._remark = ""
        # Asked of the stream itself: rich would also take FORCE_COLOR in a CI log for a terminal.
        if enabled and self._stream.isatty():
            console = Console(file=self._stream)
            if not console.is_dumb_terminal:
                # Refreshed by update() alone: no thread of its own.
                self._live = Live(console=console, auto_refresh=False)

    def update(self, status: Status) -> None:
        """Shows a new status in place of the last one (terminal) or below it (log)."""
        status = dataclasses.replace(status, remark=status.remark or self._remark)
        if self._live is not None:
            self._live.start()
            self._live.update(_style(status), refresh=True)
        elif self._enabled:
            print(format_status(status), file=self._stream, flush=True)

    def remark(self, text: str) -> None:
        """A few words at the end of every status from now on; "" for none. May be called from any thread."""
        self._remark = text

    def note(self, text: str) -> None:
        """Prints a line that stays, above the status line: an evaluation's result, a checkpoint, a warning."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        elif self._enabled:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the last status standing and gives the terminal back. Closing twice is harmless."""
        if self._live is not None:
            self._live.stop()

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _style(status: Status) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for position, (label, value) in enumerate(_fields(status)):
        line.append(_SEPARATOR if position else "", style="dim")
        line.append(f"{label} " if label else "", style="dim")
        line.append(value, style="bold" if label in ("step", "loss") else "")
    return line
