"""Loss spikes, told from noise by robust statistics of the last steps: a pure function of the numbers on record.

PaLM 540B saw about 20 spikes and went back to a checkpoint some 100 steps before each, skipping 200 to 500 batches
(Chowdhery et al. 2022, arXiv 2204.02311, section 5.1). Which batches and when, people decided; here a rule does, and
since it is asked of false alarms first, it is strict. A step is *high* when its loss

- is above all but two of the last `window` losses of ordinary steps,
- lies `z_score` robust deviations above their median (1.4826 times the median of the absolute deviations from it),
- and `min_rise` nats;

or when the logarithm of its gradient norm is, by `min_growth`, while the loss is not below its median. A spike is
`patience` high steps in a row, or one of `huge_rise` nats. By the first condition alone losses of *any* distribution,
if only the steps are independent and alike, make a spike end at a given step with a chance of at most
`comb(patience + 2, patience) / comb(window + patience, patience)`, 7e-8 by default; the others make that much less for
what losses look like. Nothing is judged before the window is full, and a falling loss is never high.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_scale.core.checks import is_finite, is_integer
from t5x_scale.core.errors import UserError, check_choice

REWIND, STOP, WARN, OFF = "rewind", "stop", "warn", "off"
POLICIES = (REWIND, STOP, WARN, OFF)
# Of the window, so many may be higher than what counts as high: it is not blind for long after a single outlier.
OUTLIERS = 2
# The most that any count of the guard may be: more steps than runs have.
MAX_STEPS = 10_000_000
# From the median of absolute deviations to the standard deviation of a normal distribution.
_TO_DEVIATION = 1.4826
_SMALLEST_NORM = 1e-30


@dataclasses.dataclass(frozen=True)
class SpikeGuard:
    """What a spike is, and what is done about one. All of it may be changed when a run is resumed.

    Steps are numbered from 0, as batches are: step s is what follows the checkpoint of s, and stands in metrics.jsonl
    as s + 1.

    Attributes:
      policy: `rewind` goes back and jumps over the data around the spike, `stop` ends the run with the reason and
        saves nothing more, `warn` says it, `off` looks at nothing.
      window: steps that a step is compared with; until there are as many, nothing is judged.
      z_score: robust deviations from the median that are high.
      min_rise: nats above the median that are high, however quiet the run.
      min_growth: the factor above the median that makes a gradient norm high; None watches the loss alone.
      patience: high steps in a row that are a spike; it begins with the first.
      huge_rise: nats above the median with which one high step is a spike; None always waits for `patience`.
      refused_updates: updates refused within `window` steps, for a loss or gradient that was not finite, that are a
        spike beginning with the first of them. They never reach the parameters, so that one alone does no harm; 1 goes
        back for each.
      rewind_steps: how far before the spike the checkpoint must lie that `rewind` goes back to.
      skip_before, skip_after: batches before the spike, and from it on, that are not delivered again. Up to
        `rewind_steps` before: so it does not matter to the result which checkpoint there was.
      max_rewinds: of the whole run; the next spike stops it.
      max_rewinds_nearby: of these, within `rewind_steps` of each other: where going back does not help.
    """

    policy: str = REWIND
    window: int = 128
    z_score: float = 6.0
    min_rise: float = 0.25
    min_growth: float | None = 10.0
    patience: int = 5
    huge_rise: float | None = 5.0
    refused_updates: int = 2
    rewind_steps: int = 100
    skip_before: int = 100
    skip_after: int = 200
    max_rewinds: int = 50
    max_rewinds_nearby: int = 3

    def __post_init__(self) -> None:
        check_choice("SpikeGuard.policy", self.policy, POLICIES)
        least = {"window": 8, "patience": 1, "refused_updates": 1, "rewind_steps": 0, "skip_before": 0, "skip_after": 1}
        for name, low in {**least, "max_rewinds": 0, "max_rewinds_nearby": 1}.items():
            value = getattr(self, name)
            if not is_integer(value) or not low <= value <= MAX_STEPS:
                raise UserError(f"SpikeGuard.{name} is {value!r}; expected a whole number from {low} to {MAX_STEPS:,}")
        above = {"z_score": 0.0, "min_rise": 0.0, "min_growth": 1.0, "huge_rise": 0.0}
        for name, low in above.items():
            value = getattr(self, name)
            if value is None and name in ("min_growth", "huge_rise"):
                continue
            if not is_finite(value) or value < low:
                raise UserError(f"SpikeGuard.{name} is {value!r}; expected a number, {low:g} or more")
        if self.skip_before > self.rewind_steps:
            raise UserError(
                f"SpikeGuard.skip_before is {self.skip_before}, more than rewind_steps = {self.rewind_steps}: batches "
                "from before the checkpoint have been learnt from and cannot be jumped over; raise rewind_steps"
            )

    @property
    def reach(self) -> int:
        """Steps back from the newest step to where a checkpoint may be needed: for a rewind, and one from there."""
        return 2 * (self.rewind_steps + self.patience)


@dataclasses.dataclass(frozen=True)
class Spike:
    """A spike: the step it begins at, from 0, and the reason in words."""

    step: int
    reason: str


class SpikeDetector:
    """Sees every step of a run once, in order. Equal numbers, equal answers: nothing else is asked."""

    def __init__(self, config: SpikeGuard, state: Mapping[str, Any] | None = None):
        """Begins with no history, or goes on from a `state()` of before."""
        self._config = config
        state = state or {}
        # Pairs (loss, logarithm of the gradient norm) of ordinary steps.
        self._window = collections.deque(map(tuple, state.get("window", ())), maxlen=config.window)
        # The high steps in a row up to now: where they began, their pairs, and whether they were reported.
        self._since: int | None = state.get("since")
        self._high: list[tuple[float, float]] = [tuple(pair) for pair in state.get("high", ())]
        self._told: bool = state.get("told", False)
        self._refused: list[int] = list(state.get("refused", ()))

    def state(self) -> dict[str, Any]:
        """Everything that later answers depend on, as JSON values; a few kilobytes."""
        return {
            "window": [list(pair) for pair in self._window],
            "since": self._since,
            "high": [list(pair) for pair in self._high],
            "told": self._told,
            "refused": list(self._refused),
        }

    def forget(self) -> None:
        """Begins anew with the next step, where another level of loss is expected; refused updates still count."""
        self._window.clear()
        self._since, self._high, self._told = None, [], False

    def see(self, step: int, loss: float, grad_norm: float, refused: bool = False) -> Spike | None:
        """The spike that this step makes sure of, if it does. A spike that lasts is reported once.

        Args:
          step: number of the step, from 0.
          loss: its mean loss, nats a token.
          grad_norm: its gradient norm, before clipping.
          refused: whether its update was, since the loss or a gradient was not finite.
        """
        if refused or not math.isfinite(loss) or not math.isfinite(grad_norm):
            return self._refuse(step)
        pair = (loss, math.log(max(grad_norm, _SMALLEST_NORM)))
        reason = self._judge(*pair)
        if reason is None:
            # What came before was noise: it belongs to what later steps are compared with.
            self._window.extend([*self._high, pair])
            self._since, self._high, self._told = None, [], False
            return None
        self._high.append(pair)
        self._since = step if self._since is None else self._since
        if self._told:
            return self._forget_high()
        count, is_huge = len(self._high), self._is_huge(loss)
        if count < self._config.patience and not is_huge:
            return None
        self._told = True
        spike = Spike(self._since, f"{reason} at step {step}" + (f", the last of {count} such" if count > 1 else ""))
        self._forget_high()
        return spike

    def _refuse(self, step: int) -> Spike | None:
        self._refused = [*(other for other in self._refused if other > step - self._config.window), step]
        if len(self._refused) < self._config.refused_updates:
            return None
        steps, self._refused = self._refused, []
        named = ", ".join(map(str, steps))
        return Spike(steps[0], f"loss or gradients not finite at step{'s' * (len(steps) > 1)} {named}")

    def _forget_high(self) -> None:
        """Makes the high steps ordinary ones, once they are reported: should the run stay there, that is its level."""
        self._window.extend(self._high)
        self._high = []

    def _judge(self, loss: float, log_norm: float) -> str | None:
        """Why a step is high, or None."""
        if len(self._window) < self._config.window:
            return None
        losses = sorted(loss for loss, _ in self._window)
        # A spike that was reported stands in the window, and is over when the loss is no longer far from the median.
        outliers = len(losses) if self._told else OUTLIERS
        rise = _rise(losses, loss, outliers, self._config.z_score, self._config.min_rise)
        if rise is not None:
            return f"loss {loss:.4g}, {rise:.3g} nats above the median of the {len(losses)} steps before,"
        if self._config.min_growth is None or loss < statistics.median(losses):
            return None
        norms = sorted(norm for _, norm in self._window)
        rise = _rise(norms, log_norm, outliers, self._config.z_score, math.log(self._config.min_growth))
        if rise is None:
            return None
        return f"gradient norm {math.exp(log_norm):.4g}, {math.exp(min(rise, 700.0)):.3g} times the median before,"

    def _is_huge(self, loss: float) -> bool:
        huge = self._config.huge_rise
        return huge is not None and loss - statistics.median(loss for loss, _ in self._window) >= huge


def _rise(ordered: Sequence[float], value: float, outliers: int, z_score: float, least: float) -> float | None:
    """How far `value` lies above the median of `ordered` ones, if it is high and above all but `outliers` of them."""
    if outliers < len(ordered) and value <= ordered[-1 - outliers]:
        return None
    median = statistics.median(ordered)
    deviation = _TO_DEVIATION * statistics.median(abs(other - median) for other in ordered)
    return value - median if value - median >= max(least, z_score * deviation) else None
