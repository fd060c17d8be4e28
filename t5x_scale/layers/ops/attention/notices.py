"""What is said of attention that is computed in a slower way than its platform has."""

from __future__ import annotations

import functools
import logging

_LOGGER = logging.getLogger(__name__)


@functools.cache
def warn_once(text: str) -> None:
    """Warns in a line: once, whatever the number of layers and of times that they are traced."""
    _LOGGER.warning("%s", text)
