"""How large the batch of a run could have been, by the noise of its gradients (McCandlish et al. 2018, 1812.06162)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from t5x_scale.laws.mccandlish import noise_scale, steps_factor
from t5x_scale.monitor.life_tables import Table
from t5x_scale.monitor.metric_log import MetricLog
from t5x_scale.planner.amounts import count_text

# As `optim.noise_scale.METRICS`, which brings a backend.
NOISE, SIGNAL = "optim/gradient_noise", "optim/gradient_signal"
_BATCH, _LOSS = "train/weight", "train/loss"
_ROWS = 5
# Noise scales are known within a factor of two at best.
_CLOSE = 2.0


@dataclasses.dataclass(frozen=True)
class Moment:
    """A step of a run: its loss, its batch and the noise scale, both in tokens with a loss; NaN where not known."""

    step: int
    loss: float
    batch: float
    scale: float

    def steps_at(self, factor: float) -> float | None:
        """Steps at another batch over those at this one, to the same loss; None where the scale is not known."""
        return steps_factor(self.batch, self.scale, factor * self.batch) if self.scale > 0 and self.batch > 0 else None

    @property
    def verdict(self) -> str:
        """What the rule says."""
        twice, half = self.steps_at(2.0), self.steps_at(0.5)
        if twice is None or half is None:
            return "the gradients' signal is below their noise: more steps are needed to say how large it may be"
        about = f"{count_text(self.batch)} tokens, the noise scale {count_text(self.scale)}"
        if self.scale > _CLOSE * self.batch:
            return f"{about}: small; twice the batch would take {twice:.0%} of the steps"
        if self.scale < self.batch / _CLOSE:
            return f"{about}: large; half the batch would take {half / 2:.0%} of the tokens"
        return f"{about}: about as large as pays, with twice the fewest steps and twice the fewest tokens"


def noise_along(log: MetricLog, rows: int = _ROWS, decay: float = 0.99) -> list[Moment]:
    """Moments at equal distances along a run, the last step among them; none where it did not record its noise.

    Args:
      log: of the run.
      rows: how many.
      decay: of the averages of noise and signal, a step.
    """
    if any(name not in log.series for name in (NOISE, SIGNAL, _BATCH, _LOSS)):
        return []
    steps = log.series[NOISE].steps
    noise, signal, batch, loss = (_at(log, name, steps) for name in (NOISE, SIGNAL, _BATCH, _LOSS))
    scale = noise_scale(noise, signal, decay)
    chosen = np.unique(np.linspace(0, len(steps) - 1, rows + 1).astype(int))
    return [
        Moment(int(steps[row]), float(loss[row]), float(batch[row]), float(scale[row]))
        for row in (chosen[1:] if len(chosen) > 1 else chosen)
    ]


def make_batch_table(log: MetricLog) -> Table | None:
    """The batch of a run beside its noise scale, with what the rule says as the heading; None without a record."""
    moments = noise_along(log)
    if not moments:
        return None
    header = ["after step", "loss", "batch, tokens", "noise scale", "steps at twice the batch", "tokens at half"]
    return Table(f"Batch: {moments[-1].verdict}", header, [list(_cells(moment)) for moment in moments])


def _cells(moment: Moment) -> Iterator[str]:
    yield f"{moment.step:,}"
    yield f"{moment.loss:.4f}"
    yield count_text(moment.batch)
    yield count_text(moment.scale) if moment.scale > 0 else "–"
    twice, half = moment.steps_at(2.0), moment.steps_at(0.5)
    yield "–" if twice is None else f"{twice:.0%}"
    yield "–" if half is None else f"{half / 2:.0%}"


def _at(log: MetricLog, name: str, steps: np.ndarray) -> np.ndarray:
    """The values of a series at steps; NaN where it has none."""
    series = log.series[name]
    place = np.clip(np.searchsorted(series.steps, steps), 0, len(series.steps) - 1)
    return np.where(series.steps[place] == steps, series.values[place], np.nan)


# What the report of a run says beyond its record.
JUDGES = (make_batch_table,)
