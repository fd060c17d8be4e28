"""Follows the loss of a run: what is seen is said, and a spike that asks for a deed is remembered."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from t5x_scale.monitor.spikes import OFF, WARN, Spike, SpikeDetector, SpikeGuard
from t5x_scale.monitor.status import StatusLine
from t5x_scale.monitor.writers import MetricWriters


class SpikeWatch:
    """Sees the metrics of every step, in order; every process of a run sees the same ones.

    Attributes:
      found: the first spike that the run must not go on from; None as long as it may.
    """

    def __init__(
        self,
        guard: SpikeGuard,
        writers: MetricWriters,
        line: StatusLine,
        state: Mapping[str, Any] | None = None,
        jumps: Collection[int] = (),
    ):
        """Args:
        guard: what counts as a spike, and what is done about one.
        writers, line: where it is said.
        state: a `state()` of before, to go on from.
        jumps: steps from which on another level of loss is to be expected, and is no spike.
        """
        self.found: Spike | None = None
        self._guard, self._writers, self._line = guard, writers, line
        self._jumps = frozenset(jumps)
        self._detector = None if guard.policy == OFF else SpikeDetector(guard, state)
        self._refused_before = False

    def state(self) -> dict[str, Any] | None:
        """What later answers depend on, as JSON values."""
        return None if self._detector is None else self._detector.state()

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Looks at the metrics of a step, counted from 0, once it is done."""
        if self.found is not None:
            return  # What follows will be done again.
        refused = metrics["optim/skipped_updates"] > 0
        if refused:
            self._writers.event("refused", step + 1, reason="loss or gradients not finite")
            if not self._refused_before:
                self._line.note(f"step {step}: loss or gradients not finite; this update was refused")
        self._refused_before = refused
        if self._detector is None:
            return
        if step in self._jumps:
            self._detector.forget()
        spike = self._detector.see(step, metrics["train/loss"], metrics["optim/grad_norm"], refused)
        if spike is None:
            return
        self._writers.event("spike", step + 1, spike_step=spike.step, reason=spike.reason, policy=self._guard.policy)
        self._line.note(f"a spike began at step {spike.step}: {spike.reason}")
        if self._guard.policy != WARN:
            self.found = spike
