"""What a configuration may write for rates: functions of a source's size, and schedules over steps."""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.data.mixtures.mixture_schedule import RAMP_PIECES

UNITS = ("tokens", "examples")
KINDS = ("piecewise", "linear")
Unit = Literal["tokens", "examples"]


@dataclasses.dataclass(frozen=True)
class SourceCounts:
    """How large a source is: what a rate that is a function is given. Of a mixture, the sum over its sources.

    Attributes:
      name: as the configuration has it.
      num_tokens: tokens of the store, separators included.
      num_documents: documents of the store.
      unit: what the rates beside this one count.
    """

    name: str
    num_tokens: int
    num_documents: int
    unit: Unit = "tokens"


Rate = float | Callable[[SourceCounts], float]


@dataclasses.dataclass(frozen=True)
class Proportional:
    """A rate by size, min(scale x size, maximum) ** (1 / temperature).

    T5's mixing proportional to the number of examples with an artificial limit, and its temperature (Raffel et al.
    2020, section 3.5.2, `seqio.mixing_rate_num_examples`); mT5 and its kin write the exponent alpha = 1 / temperature.

    Attributes:
      maximum: the limit, in `unit`; None is none.
      temperature: 1 is proportional; the larger, the more even.
      scale: a factor before the limit.
      unit: of the size; what the rates beside this one count when None. T5's mixtures count examples: there, say
        rate_unit = "examples".
    """

    maximum: float | None = None
    temperature: float = 1.0
    scale: float = 1.0
    unit: Unit | None = None

    def __post_init__(self):
        for name in ("maximum", "temperature", "scale"):
            value = getattr(self, name)
            if not (name == "maximum" and value is None) and not is_number(value, above=0):
                raise UserError(f"Proportional.{name} is {value!r}; it must be a positive number")
        check_choice("Proportional.unit", self.unit, (None, *UNITS))

    def __call__(self, counts: SourceCounts) -> float:
        """The rate of a source of that size."""
        by_tokens = (self.unit or counts.unit) == "tokens"
        size = self.scale * (counts.num_tokens if by_tokens else counts.num_documents)
        return float(size if self.maximum is None else min(size, self.maximum)) ** (1 / self.temperature)


Rates = str | Mapping[str, Rate]


@dataclasses.dataclass(frozen=True)
class RateSchedule:
    """Rates that change at steps of the run.

        RateSchedule(((0, {"web": 0.9, "code": 0.1}), (10_000, {"web": 0.7, "code": 0.2, "new": 0.1})))

    Attributes:
      pieces: pairs (first step, rates), steps increasing from 0; rates are whatever a configuration may give without a
        schedule. A source may be absent from some pieces.
      kind: "piecewise": rates jump; "linear": shares of the tokens change evenly from one piece's to the next one's.
      ramp_pieces: a linear change is made in so many equal jumps.
    """

    pieces: Sequence[tuple[int, Rates]]
    kind: Literal["piecewise", "linear"] = "piecewise"
    ramp_pieces: int = RAMP_PIECES

    def __post_init__(self):
        check_choice("RateSchedule.kind", self.kind, KINDS)
        if not isinstance(self.ramp_pieces, int) or self.ramp_pieces < 1:
            raise UserError(f"RateSchedule.ramp_pieces is {self.ramp_pieces!r}; it must be a whole number, 1 or more")
        try:
            steps = [step for step, _ in self.pieces]
        except (TypeError, ValueError) as error:
            raise UserError(f"RateSchedule.pieces are pairs (first step, rates), not {self.pieces!r}") from error
        whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
        if not steps or not whole or steps[0] != 0 or any(b <= a for a, b in itertools.pairwise(steps)):
            raise UserError(f"the steps of RateSchedule.pieces must be whole numbers that increase from 0, not {steps}")


def is_number(value: Any, above: float | None = None) -> bool:
    """Whether this is a finite number of at least 0, or more than `above`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        return False
    return value >= 0 if above is None else value > above
