"""Which source each row of a run comes from, when the rates change on the way.

Rates are planned by steps and belong to rows: `RatePlan` says what a configuration asks for, `RatePlan.by_rows` turns
it into a `MixtureSchedule`, pieces that begin at global rows. Skipped rows do not move them. Every source is gone
through without a gap or a repetition, whatever its rate does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.mixtures.mixture import PERIOD, Mixture
from t5x_scale.data.mixtures.step_rows import StepRows

# Constant pieces that a linear change from one rate to the next is cut into.
RAMP_PIECES = 32

Shares = Mapping[str, float]


class MixtureSchedule:
    """A `Mixture` in pieces, with its interface.

    Attributes:
      names: the sources of all pieces, sorted.
      starts: int64 [pieces], the global row at which each piece begins; the first is 0.
      slots: int64 [pieces, sources], rows of each source in one `PERIOD` of a piece.
    """

    def __init__(self, pieces: Sequence[tuple[int, Shares]]):
        """Args:
          pieces: pairs (first global row, {source: rate}), rows increasing from 0; a rate of 0 is a source left out.
            Neighbours with equal slots become one piece.

        Raises:
          UserError: as `Mixture`, for any piece.
        """
        if not pieces or pieces[0][0] != 0 or any(b[0] <= a[0] for a, b in itertools.pairwise(pieces)):
            raise ValueError(f"the rows of pieces must increase from 0, not {[row for row, _ in pieces]}")
        mixtures = [(row, _make_mixture(shares)) for row, shares in pieces]
        kept = [
            (row, mixture)
            for index, (row, mixture) in enumerate(mixtures)
            if not index or _slots_by_name(mixture) != _slots_by_name(mixtures[index - 1][1])
        ]
        self.names = tuple(sorted({name for _, mixture in kept for name in mixture.names}))
        self.starts = np.array([row for row, _ in kept], np.int64)
        self._mixtures = [mixture for _, mixture in kept]
        self.slots = np.zeros((len(kept), len(self.names)), np.int64)
        # Of every place in a piece's period: its source, and the earlier places of that source.
        self._sources = np.empty((len(kept), PERIOD), np.int64)
        self._earlier = np.empty((len(kept), PERIOD), np.int64)
        for piece, mixture in enumerate(self._mixtures):
            members = np.searchsorted(self.names, mixture.names)
            self.slots[piece, members] = mixture.slots
            sources, self._earlier[piece] = mixture.slot(np.arange(PERIOD))
            self._sources[piece] = members[sources]
        # Periods are counted from row 0 in every piece: many short pieces, each begun at the head of its period, would
        # round the same way each time. What lets counts go on from piece to piece is added to those of the period.
        self._shift = np.zeros_like(self.slots)
        for piece, row in enumerate(self.starts[1:].tolist()):
            self._shift[piece + 1] = self._rows_before(piece, row) - self._rows_before(piece + 1, row)

    def slot(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Mixture.slot`: (source of each row [n], earlier rows of that source [n]), both int64."""
        rows = np.asarray(rows, np.int64)
        pieces = np.searchsorted(self.starts, rows, side="right") - 1
        period, place = np.divmod(rows, PERIOD)
        sources = self._sources[pieces, place]
        counts = self._shift[pieces, sources] + period * self.slots[pieces, sources] + self._earlier[pieces, place]
        return sources, counts

    def rows_before(self, row: int) -> np.ndarray:
        """int64 [sources]: how many of the global rows [0, row) belong to each source."""
        return self._rows_before(self._piece(row), int(row))

    def shares(self, row: int) -> dict[str, float]:
        """{source: share of the rows} around a global row; sources without a share are absent."""
        mixture = self._mixtures[self._piece(row)]
        return dict(zip(mixture.names, mixture.shares.tolist(), strict=True))

    def digest(self, row: int) -> str:
        """A hash of where the global rows [0, row) come from: equal digests, equal sources and counts of all of them.

        What comes after `row`, a source that only comes after it included, changes nothing.
        """
        pieces = [
            (int(start), _slots_by_name(mixture))
            for start, mixture in zip(self.starts, self._mixtures, strict=True)
            if start < row
        ]
        return hashlib.sha256(json.dumps([PERIOD, pieces]).encode()).hexdigest()[:32]

    def _piece(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def _rows_before(self, piece: int, row: int) -> np.ndarray:
        period, place = divmod(row, PERIOD)
        part = np.bincount(self._sources[piece, :place], minlength=len(self.names))
        return self._shift[piece] + period * self.slots[piece] + part


@dataclasses.dataclass(frozen=True)
class RatePlan:
    """Token shares by step.

    Attributes:
      pieces: pairs (first step, {source: token share}), steps increasing from 0; a source may be absent from some.
      linear: whether shares change evenly from one piece's to the next one's; if not, they jump.
      ramp_pieces: constant pieces that each such change is cut into, equally long in steps.
    """

    pieces: Sequence[tuple[int, Shares]]
    linear: bool = False
    ramp_pieces: int = RAMP_PIECES

    @classmethod
    def constant(cls, shares: Shares) -> RatePlan:
        """The same shares at every step."""
        return cls(((0, dict(shares)),))

    @property
    def names(self) -> tuple[str, ...]:
        """Every source that ever has a share, sorted."""
        return tuple(sorted({name for _, shares in self.pieces for name, share in shares.items() if share > 0}))

    @property
    def jumps(self) -> frozenset[int]:
        """The steps from which on the rows come from elsewhere than before, all at once."""
        return frozenset() if self.linear else frozenset(step for step, _ in self.pieces[1:])

    def steps(self) -> list[tuple[int, dict[str, float]]]:
        """The pieces after changes have been cut: pairs (first step, {source: share}), constant up to the next."""
        if not self.linear:
            return [(step, dict(shares)) for step, shares in self.pieces]
        cut: list[tuple[int, dict[str, float]]] = []
        for (first, left), (end, right) in itertools.pairwise(self.pieces):
            count = min(self.ramp_pieces, end - first)
            for index in range(count):
                way = (index + 0.5) / count
                cut.append((first + (end - first) * index // count, _interpolate(left, right, way)))
        return [*cut, (self.pieces[-1][0], dict(self.pieces[-1][1]))]

    def by_rows(self, steps: StepRows, tokens_per_row: Mapping[str, float] | None = None) -> MixtureSchedule:
        """The plan in global rows.

        Args:
          steps: where steps begin. The cuts of a change lie at steps, not at equal rows, so that a batch size changed
            in the middle of it leaves those before where they were.
          tokens_per_row: {source: mean filled positions of a row}; a source whose rows hold less gets more of them.

        Raises:
          UserError: as `Mixture`, for any piece.
        """
        return MixtureSchedule([(steps.first_row(step), row_rates(s, tokens_per_row)) for step, s in self.steps()])


def row_rates(shares: Shares, tokens_per_row: Mapping[str, float] | None) -> dict[str, float]:
    """Shares of the rows from shares of the tokens."""
    if tokens_per_row is None:
        return dict(shares)
    # Relative to the fullest source, so that sources of full rows keep exactly the shares that were asked for.
    fullest = max((tokens_per_row[name] for name in shares), default=1.0)
    return {name: share * (fullest / tokens_per_row[name]) for name, share in shares.items()}


def _interpolate(left: Shares, right: Shares, way: float) -> dict[str, float]:
    names = dict.fromkeys([*left, *right])
    return {name: (1 - way) * left.get(name, 0.0) + way * right.get(name, 0.0) for name in names}


def _make_mixture(shares: Shares) -> Mixture:
    present = {name: rate for name, rate in sorted(shares.items()) if rate != 0}
    if not present:
        raise UserError(f"all rates are zero: {dict(shares)}; a rate is a positive number")
    return Mixture(present)


def _slots_by_name(mixture: Mixture) -> list[tuple[str, int]]:
    return list(zip(mixture.names, mixture.slots.tolist(), strict=True))
