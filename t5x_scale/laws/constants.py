"""Numbers from papers, each with where it is from and how sure we are of it: the fields of a law."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from t5x_scale.core.errors import check_choice

# From the best to the worst; `recomputed` follows from stated constants, `fitted` comes from somebody's own runs.
_RANKS = {"recomputed": 0, "fitted": 0, "high": 0, "medium": 1, "low": 2}
CONFIDENCES = tuple(_RANKS)


def worst_confidence(*confidences: str) -> str:
    """The least sure of some confidences; of equally sure ones the first."""
    return max(confidences, key=_RANKS.__getitem__)


@dataclasses.dataclass(frozen=True)
class Constant:
    """A number from a paper.

    Attributes:
      value: the number.
      source: paper and section or table.
      confidence: one of `CONFIDENCES`: how sure we are that the paper says so.
      error: its standard error, where the source gives one.
    """

    value: float
    source: str
    confidence: str = "high"
    error: float | None = None

    def __post_init__(self) -> None:
        check_choice("Constant.confidence", self.confidence, CONFIDENCES)

    def __float__(self) -> float:
        return self.value


def constant(
    value: float, source: str = "", confidence: str = "high", error: float | None = None, *, signed: bool = False
) -> Any:
    """A field of a law: its default, and where that is from (the law's own `source` unless given).

    With `signed` a fit moves the constant itself; without, its logarithm, which keeps it positive.
    """
    entry = Constant(value, source, confidence, error)
    return dataclasses.field(default=value, metadata={"constant": entry, "start": value, "signed": signed})


def unpublished(start: float, *, signed: bool = False) -> Any:
    """A field of a law for a constant that its paper does not state: fitted, from about `start`, before it is used."""
    entry = Constant(math.nan, "not published: fit it to runs", "low")
    return dataclasses.field(default=math.nan, metadata={"constant": entry, "start": start, "signed": signed})
