"""The loop over steps: when it stops, saves, evaluates and turns back, and in which order."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from t5x_scale.checkpoint.manager import CheckpointManager
from t5x_scale.commands.training.course import SPIKES, Start
from t5x_scale.commands.training.probes import Probes
from t5x_scale.core.preemption import EXIT_RESUMABLE, StopSignal
from t5x_scale.data.eval_source import EvalSource
from t5x_scale.data.prefetch import Prefetcher, host_rows, make_global_batch
from t5x_scale.evaluation import EvaluationConfig, evaluate, metric_names
from t5x_scale.monitor.phases import CHECKPOINT, EVALUATION, PROBE
from t5x_scale.monitor.plan_band import PlanWatch
from t5x_scale.monitor.recorder import Recorder
from t5x_scale.monitor.spike_watch import SpikeWatch
from t5x_scale.monitor.spikes import REWIND, Spike, SpikeGuard
from t5x_scale.monitor.status import StatusLine
from t5x_scale.monitor.throughput import Throughput
from t5x_scale.monitor.writers import MetricWriters
from t5x_scale.program import Runtime
from t5x_scale.train_state import TrainState

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Ending:
    """Why the loop ended.

    Attributes:
      code: what the process ends with; None where it does not.
      spike: a spike that the run must not go on from.
    """

    code: int | None = None
    spike: Spike | None = None


class Loop:
    """The loop, and the objects it hands to one another."""

    def __init__(
        self,
        runtime: Runtime,
        eval_sources: dict[str, EvalSource],
        manager: CheckpointManager,
        evaluation: EvaluationConfig,
        guard: SpikeGuard,
        log_every_steps: int,
        throughput: Throughput,
        writers: MetricWriters,
        line: StatusLine,
        probes: Probes,
        plan: PlanWatch,
    ):
        self.runtime, self.eval_sources = runtime, eval_sources
        self.manager, self.evaluation, self.guard = manager, evaluation, guard
        self.log_every_steps, self.throughput = log_every_steps, throughput
        self.writers, self.line, self.probes, self.plan = writers, line, probes, plan
        self.turns = 0

    def run(self, start: Start, end: int, stop: StopSignal) -> Ending:
        """Runs the steps from where `start` stands up to `end`, or to where the run is to stop or to go back."""
        self.source, self.metadata = start.source, start.metadata
        self.watch = SpikeWatch(self.guard, self.writers, self.line, start.spikes, start.source.jumps)
        self.recorder = Recorder(
            self.runtime.metric_names,
            self.writers,
            self.throughput,
            self.line,
            total_steps=end,
            tokens_before=lambda step: self.source.schedule.first_row(step) * self.source.length,
            at_interval=self._data_metrics,
            at_step=self._see,
        )
        self._tell(start)
        with self._batches(start.step) as batches:
            state, stopped = self._steps(start.state, start.step, end, batches, stop)
        if self.watch.found is not None:
            return Ending(None if stopped is None else EXIT_RESUMABLE, self.watch.found)
        if stopped is not None:
            self._save(stopped, state, force=True)
            self.line.note(f"stopped at step {stopped} and saved; the same command continues")
            return Ending(EXIT_RESUMABLE)
        if self.manager.config.save_final:
            self._save(end, state, force=True)
        self._evaluate(end, state)
        return Ending(0)

    def _steps(
        self, state: TrainState, start: int, end: int, batches: Iterator[Any], stop: StopSignal
    ) -> tuple[TrainState, int | None]:
        """The state after `end` steps and None, or after fewer and the step at which the run was told to stop."""
        first, buffer = start, self.runtime.make_record(self.log_every_steps)
        for step in range(start, end):
            # The order is a promise: stop, save and evaluate all happen before the batch of this step is taken.
            stopping, saving = self._is_stopping(stop), step > start and self.manager.is_due(step)
            # Also where the run begins: a run that was killed while it evaluated has saved this step already.
            evaluating = self.evaluation.is_due(step)
            probing = step > start and self.probes.is_due(step)
            pausing = stopping or saving or evaluating or probing
            if first < step and (pausing or step % self.log_every_steps == 0):
                self.recorder.push(first, step, buffer, wait=pausing)
                first = step
            if stopping or self.watch.found is not None:
                return state, step if stopping else None
            if saving:
                self._save(step, state)
            if evaluating:
                self._evaluate(step, state)
            with self.throughput.data_wait(step):
                _, batch = next(batches)
            if probing:
                with self.throughput.pause(PROBE, step):
                    self.probes.run(step, state, batch)
            with self.throughput.dispatch(self.source.schedule.size(step)):
                state, buffer = self.runtime.train_step(state, batch, buffer)
        if first < end:
            self.recorder.push(first, end, buffer, wait=True)
        return state, None

    def _see(self, step: int, metrics: Mapping[str, float]) -> None:
        self.watch.see(step, metrics)
        if self.watch.found is None:
            self.plan.see(step, metrics)

    def _is_stopping(self, stop: StopSignal) -> bool:
        """Processes agree on a turn of the loop that lies ahead; steps come again in a run that goes back."""
        self.turns += 1
        return stop.is_requested(self.turns)

    def _tell(self, start: Start) -> None:
        """Puts on record what going back has made of the steps since."""
        for intervention in start.carried_out:
            about = {"number": intervention.number, "spike_step": intervention.spike_step}
            self.writers.event("rewind", start.step, reason=intervention.reason, **about)
            self.writers.event("skip", start.step, rows=[list(rows) for rows in intervention.skip_rows], **about)
            self.line.note(f"went back to step {start.step}, before the spike at step {intervention.spike_step}")

    def _batches(self, start: int) -> Prefetcher:
        sharding = self.runtime.batch_sharding
        return Prefetcher(
            self.source,
            start,
            make_global_batch(sharding),
            rows=lambda step: host_rows(sharding, self.source.schedule.size(step)),
        )

    def _data_metrics(self, step: int) -> dict[str, float]:
        tokens, epochs = self.source.token_counts(step), self.source.epochs(step)
        names = zip(metric_names(self.source.names), self.source.names, strict=True)
        planned = self.plan.to_metrics(self.source.schedule.first_row(step) * self.source.length)
        return planned | {
            f"data/{short}/{kind}": counts[name]
            for short, name in names
            for kind, counts in (("tokens", tokens), ("epochs", epochs))
        }

    def _save(self, step: int, state: TrainState, force: bool = False) -> None:
        with self.throughput.pause(CHECKPOINT, step):
            # Metrics first: a step that is saved is never computed again, so its line must not be lost.
            if not self.writers.flush():
                logger.warning("the metrics up to step %d are not all written; the run goes on", step)
            metadata = {**self.metadata, "data": self.source.state(step), SPIKES: self.watch.state()}
            if self.guard.policy == REWIND:
                self.manager.keep_since(step - self.guard.reach)
            self.manager.save(step, state, metadata, force=force)
            if force:
                self.manager.wait()
        self.recorder.saved()

    def _evaluate(self, step: int, state: TrainState) -> None:
        if not self.eval_sources:
            return
        with self.throughput.pause(EVALUATION, step):
            runtime = self.runtime
            metrics = evaluate(runtime.eval_step, runtime.batch_sharding, state.params, self.eval_sources)
        self.writers.write(step, metrics)
        losses = {name: value for name, value in metrics.items() if name.endswith("/loss")}
        part = self.evaluation.max_batches
        subset = "" if part is None else f" (first {part} batches)"
        self.line.note(f"step {step}{subset}: " + "  ".join(f"{name} {value:.4f}" for name, value in losses.items()))
