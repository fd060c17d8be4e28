"""Where two runs part: the first step at which a number on record differs, in which metric, and by how much."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from t5x_scale.monitor.metric_log import MetricLog

# Of a run and not of the machine it ran on.
COMPARED = ("train", "optim", "eval", "data")
# Of these there is a value where an interval of steps ended. One also ends where a run was stopped or saved.
_OF_INTERVALS = ("data",)


@dataclasses.dataclass(frozen=True)
class Parting:
    """One metric of two runs that are not the same in it.

    Attributes:
      metric: its name.
      step: the first at which the values differ, or at which one run has none.
      left, right: the values there; None where there is none.
      different: steps with a difference, of `steps` that were compared.
      largest: the largest relative difference of all steps that both have (0.0 where only steps are missing).
    """

    metric: str
    step: int
    left: float | None
    right: float | None
    different: int
    steps: int
    largest: float

    @property
    def ulps(self) -> int | None:
        """How many representable numbers apart the two values are, see `count_between`; None where one is missing."""
        return None if self.left is None or self.right is None else count_between(self.left, self.right)


def find_partings(left: MetricLog, right: MetricLog) -> list[Parting]:
    """The metrics in which two runs differ, those that part first at the front; `[]` where all bits are equal.

    What was done again after a restart or a rewind counts as it was done last, by the rule of `metric_log`. A metric of
    intervals is compared at the steps at which both runs have it: where intervals ended is no matter of what was
    computed. It is a difference where one run has none of it, as the lack of any other metric at any step is.
    """
    names = {name for log in (left, right) for name in log.series if name.split("/")[0] in COMPARED}
    partings = filter(None, (_compare(name, left, right) for name in names))
    return sorted(partings, key=lambda parting: (parting.step, parting.metric))


def count_between(left: float, right: float) -> int:
    """How many steps of the number format lie between two values: 0 for the same bits, 1 for neighbours.

    The format is float32, which is what a step puts on record, where both values are float32 numbers; else float64.
    Values that are not finite are at the ends of the format. Two NaN are equal.
    """
    if math.isnan(left) and math.isnan(right):
        return 0
    pair = np.array([left, right])
    with np.errstate(over="ignore"):
        narrow = pair.astype(np.float32)
    is_narrow = np.array_equal(narrow.astype(np.float64), pair, equal_nan=True)
    bits = narrow.view(np.int32) if is_narrow else pair.view(np.int64)
    # Negative numbers count downwards from zero. Zero has two signs and one place.
    first, second = (int(b) if b >= 0 else int(np.iinfo(bits.dtype).min) - int(b) for b in bits)
    return abs(first - second) or int(math.copysign(1, left) != math.copysign(1, right))


def relative_difference(left: float, right: float) -> float:
    """|left - right| over the larger magnitude; 0.0 for equal values, inf where one of them is not finite."""
    if left == right or (math.isnan(left) and math.isnan(right)):
        return 0.0
    if not (math.isfinite(left) and math.isfinite(right)):
        return math.inf
    return abs(left - right) / max(abs(left), abs(right))


def _compare(name: str, left: MetricLog, right: MetricLog) -> Parting | None:
    first, second = (_by_step(log, name) for log in (left, right))
    if name.split("/")[0] in _OF_INTERVALS and first and second:
        steps = sorted(first.keys() & second.keys())
    else:
        steps = sorted(first.keys() | second.keys())
    different = [step for step in steps if not _is_same(first.get(step), second.get(step))]
    if not different:
        return None
    both = [step for step in different if step in first and step in second]
    largest = max((relative_difference(first[step], second[step]) for step in both), default=0.0)
    at = different[0]
    return Parting(name, at, first.get(at), second.get(at), len(different), len(steps), largest)


def _by_step(log: MetricLog, name: str) -> dict[int, float]:
    series = log.series.get(name)
    return {} if series is None else dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def _is_same(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return left is right
    return count_between(left, right) == 0
