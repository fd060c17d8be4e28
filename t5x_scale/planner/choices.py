"""What a plan says: each number with its reason, and the laws that spoke about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from t5x_scale.core.errors import UserError
from t5x_scale.laws import Law
from t5x_scale.planner.law_table import is_fitted

NO_DOMAIN = "its range of validity is not known"


@dataclasses.dataclass(frozen=True)
class Opinion:
    """What one law says about one number.

    Attributes:
      law: its name.
      value: what it says.
      confidence: in its constants and form.
      source: paper and section.
      outside: what of the question lies outside of its domain; it extrapolates if there is a line.
      unit: of the value, and on which corpus, where that matters.
    """

    law: str
    value: float
    confidence: str
    source: str
    outside: tuple[str, ...] = ()
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One number of a plan.

    Attributes:
      name: what it is.
      value: plain, as it goes into plan.json.
      text: for people.
      reason: why it is that; which law moved it, or which convention.
      opinions: of all laws that speak about it.
      law: the one that was followed; "" where none was.
      left_out: a line for each law that would speak about it and has no number here.
    """

    name: str
    value: Any
    text: str
    reason: str
    opinions: tuple[Opinion, ...] = ()
    law: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def outside(self) -> tuple[str, ...]:
        """What the followed law extrapolates over."""
        return next((opinion.outside for opinion in self.opinions if opinion.law == self.law), ())

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the number should be taken with care, in a few words."""
        found = []
        if self.outside == (NO_DOMAIN,):
            found.append("range unknown")
        elif self.outside:
            found.append("extrapolated")
        if self.confidence in ("medium", "low"):
            found.append(f"{self.confidence} confidence")
        return tuple(found)

    @property
    def confidence(self) -> str:
        """Of the followed law; "" where none was."""
        return next((opinion.confidence for opinion in self.opinions if opinion.law == self.law), "")


def ask(law: Law, **quantities: float) -> Opinion:
    """What a law says about these quantities, of which it takes those that it knows."""
    taken = {name: value for name, value in quantities.items() if name in law.quantities}
    # Its domain may also name what it does not compute with, such as the size of its models.
    return make_opinion(law, law.predict(**taken), **quantities)


def make_opinion(law: Law, value: float, **quantities: float) -> Opinion:
    """The opinion `value` of a law, with what these quantities leave of its domain; one without a domain says so."""
    outside = tuple(law.outside(**quantities)) if law.domain.ranges else (NO_DOMAIN,)
    confidence = "fitted" if is_fitted(law) else law.confidence
    return Opinion(law.name, float(value), confidence, law.source, outside, law.unit)


def gather(laws: Iterable[Law], opinion_of: Callable[[Law], Opinion]) -> tuple[tuple[Opinion, ...], tuple[str, ...]]:
    """The opinions of the laws that have one, and a line for each that has none: a plan stands without it.

    Args:
      laws: in the order of their opinions.
      opinion_of: asks one; it raises what laws raise.
    """
    opinions, left_out = [], []
    for law in laws:
        try:
            opinions.append(opinion_of(law))
        except (UserError, ArithmeticError) as error:
            why = str(error) if isinstance(error, UserError) else "its numbers leave the range of a float"
            left_out.append(f"{law.name} is left out: {why.replace(f'the law {law.name} ', 'it ')}")
    return tuple(opinions), tuple(left_out)


def spread(values: Iterable[float]) -> float:
    """How far apart values are, as a share of the smallest."""
    values = list(values)
    return max(values) / min(values) - 1 if values else 0.0
