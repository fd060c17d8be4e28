"""Counts what a reader leaves out, so that nothing is dropped silently."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class LeftOut:
    """What one pass over a split leaves out, by reason, with the first place of each.

    Attributes:
      taken: documents yielded, where they are counted.
      counts: {reason: how many were left out}.
    """

    def __init__(self, name: str, split: str):
        self.taken = 0
        self.counts: dict[str, int] = {}
        self._name, self._split = name, split
        self._first: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        """Counts one.

        Args:
          reason: what and why, in a few words, the same for all of a kind.
          where: the file, and the line in it.
        """
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self._first.setdefault(reason, where)

    def log(self) -> None:
        """Warns in one line for the whole pass, if anything was left out."""
        if self.counts:
            reasons = [f"{count} {reason} (first: {self._first[reason]})" for reason, count in self.counts.items()]
            taken = f"{self.taken} documents taken, " if self.taken else ""
            logger.warning("task '%s', split '%s': %sleft out: %s", self._name, self._split, taken, "; ".join(reasons))
