"""Counts what a reader leaves out, so that nothing is dropped silently."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class LeftOut:
    """What one pass over a split leaves out, by reason, with the first place of each.

    Attributes:
      taken: documents yielded.
      counts: {reason: how many were left out}.
    """

    def __init__(self, name: str, split: str):
        self.taken = 0
        self.counts: dict[str, int] = {}
        self._name, self._split = name, split
        self._first: dict[str, str] = {}
        self._expected: set[str] = set()

    def add(self, reason: str, where: str, *, expected: bool = False) -> None:
        """Counts one.

        Args:
          reason: why, in a few words, the same for all of a kind.
          where: the file, and the line in it.
          expected: it was asked for, as by a filter, and calls for no warning.
        """
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self._first.setdefault(reason, where)
        if expected:
            self._expected.add(reason)

    def log(self) -> None:
        """One line for the whole pass, if anything was left out."""
        if not self.counts:
            return
        level = logging.INFO if self.counts.keys() <= self._expected else logging.WARNING
        reasons = "; ".join(f"{count} {reason} (first: {self._first[reason]})" for reason, count in self.counts.items())
        logger.log(
            level,
            "task '%s', split '%s': %d documents taken, left out: %s",
            self._name,
            self._split,
            self.taken,
            reasons,
        )
