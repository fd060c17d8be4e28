"""What every filter of text is, and what several of them need."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class TextFilter:
    """What filters have in common."""

    def __call__(self, text: str) -> str | None:
        """`None` to keep the document, or why it is left out."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Name and thresholds, as JSON values."""
        settings = dataclasses.asdict(self)
        # As they come back from a manifest: JSON knows no tuples.
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        return {"filter": type(self).__name__, **settings}


def outside(value: float, least: float | None, most: float | None, what: str) -> str | None:
    """The reason for leaving out a document whose `value` is below or above its bounds, or `None`."""
    if least is not None and value < least:
        return f"few {what}"
    return f"many {what}" if most is not None and value > most else None


def lines_of(text: str) -> list[str]:
    """The lines that are not empty, without the space around them."""
    return [line for line in map(str.strip, text.splitlines()) if line]
