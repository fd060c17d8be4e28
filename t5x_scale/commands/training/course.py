"""Where a run begins, goes on and goes back to: three times the same, since all of it follows from what is on disk."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_scale.beginning import Beginning, begin
from t5x_scale.checkpoint import multihost
from t5x_scale.checkpoint.layout import DamagedError
from t5x_scale.checkpoint.manager import CheckpointManager, Restored
from t5x_scale.checkpoint.resume import compare_run_records
from t5x_scale.checkpoint.timeline import (
    DIGEST,
    Intervention,
    all_skipped,
    append_intervention,
    check_known,
    describe_known,
    interventions_path,
    is_stale,
    known_interventions,
    load_interventions,
)
from t5x_scale.checkpoint.together import read_together
from t5x_scale.commands.training.rewinding import plan_rewind
from t5x_scale.core.errors import UserError
from t5x_scale.data.batch_source import BatchSource
from t5x_scale.monitor import phases
from t5x_scale.monitor.health import Health
from t5x_scale.monitor.spikes import Spike, SpikeGuard
from t5x_scale.program import Runtime
from t5x_scale.train_state import TrainState

logger = logging.getLogger(__name__)

# The entry of a checkpoint's metadata: what the guard has seen.
SPIKES = "spikes"


@dataclasses.dataclass(frozen=True)
class Start:
    """What the loop begins with.

    Attributes:
      step: steps done.
      state: after them.
      source: the batches from there on.
      metadata: what is the same in every checkpoint from here on: the run's record, and its interventions so far.
      spikes: the state of the guard's statistics; None where they begin afresh.
      carried_out: the interventions that this start carries out, since its checkpoint knows nothing of them.
    """

    step: int
    state: TrainState
    source: BatchSource
    metadata: dict[str, Any]
    spikes: Mapping[str, Any] | None
    carried_out: tuple[Intervention, ...]


def check_interventions(manager: CheckpointManager, model_dir: str) -> tuple[Intervention, ...]:
    """The interventions of a run, which its checkpoints know nothing other of. Nothing is written.

    The newest checkpoint that can be read knows all that older ones do. All processes of the run must call this.

    Raises:
      UserError: a line is damaged, or lines that a checkpoint knows are lost; in all processes if in one.
    """

    def read() -> tuple[Intervention, ...]:
        interventions = load_interventions(model_dir)
        step, metadata = _read_newest(manager, manager.steps())
        if metadata is not None:
            check_known(metadata, step, interventions, interventions_path(model_dir))
        return interventions

    return read_together(read, f"what was done about the run in {model_dir}")


def _read_newest(manager: CheckpointManager, steps: Sequence[int]) -> tuple[int, dict[str, Any] | None]:
    """The newest step whose metadata can be read, and these; (0, None) where there is none."""
    for step in sorted(steps, reverse=True):
        try:
            return step, manager.read_metadata(step)
        except DamagedError:
            continue  # The restore will say so.
    return 0, None


class Course:
    """The course of a run. Every process of the run makes one and calls the same methods in the same order."""

    def __init__(
        self,
        model_dir: str,
        runtime: Runtime,
        manager: CheckpointManager,
        source: BatchSource,
        record: dict[str, Any],
        beginning: Beginning,
        train_steps: int,
        guard: SpikeGuard,
        health: Health,
    ):
        """Args:
        model_dir: of the run.
        runtime: the program.
        manager: its checkpoints.
        source: the batches of the configuration, from step 0 on.
        record: of this command; see `run_files.make_record`.
        beginning: what the run begins with.
        train_steps: steps of the whole run.
        guard: what is done about spikes.
        health: is told of restoring.
        """
        self.model_dir, self.runtime, self.manager, self.source = model_dir, runtime, manager, source
        self.record, self.beginning, self.train_steps = record, beginning, train_steps
        self.guard, self.health = guard, health
        self._seen: tuple[Intervention, ...] | None = None  # By the last start.

    def start(self) -> Start:
        """Goes on from the newest checkpoint that verifies and belongs to the course, or begins.

        Checkpoints that an intervention gave up are set aside first: after a rewind, and where a process ended in one.

        Raises:
          UserError: the resume policy does not allow it, the data does not last, or interventions were lost.
        """
        interventions = self._seen = self._load()
        source = self.source.skipping(all_skipped(interventions))
        self._leave(interventions, source)
        if self.manager.latest() is None:
            source.check_enough(self.train_steps)
            return self._make_start(0, begin(self.model_dir, self.runtime, self.beginning), source, interventions)
        with self.health.during(phases.RESTORE):
            restored = self.manager.restore(self.runtime.abstract_state)
        # Again: one in the memory of the machines may be newer.
        check_known(restored.metadata, restored.step, interventions, interventions_path(self.model_dir))
        record, has_changed = self._compare(restored)
        source = source.resumed(restored.metadata["data"], restored.step)
        source.check_enough(self.train_steps)
        return self._make_start(
            restored.step,
            restored.state,
            source,
            interventions,
            known_interventions(restored.metadata),
            record,
            # Other batches or another rate may have another level of loss.
            None if has_changed else restored.metadata.get(SPIKES),
        )

    def go_back(self, spike: Spike, source: BatchSource) -> Intervention:
        """Decides where to, and writes it down. `start` carries it out, in this process or in another.

        Args:
          spike: why.
          source: the batches that the run was at.

        Raises:
          UserError: the run shall end here, with the reason; nothing is written.
        """
        self.manager.wait(is_last=False)  # A checkpoint that is being written may be the one to go back to.
        interventions = self._load()
        if self._seen not in (None, interventions):
            raise UserError(
                f"stopped by a spike that began at step {spike.step}: {spike.reason}; "
                f"{interventions_path(self.model_dir)} has changed since this process began: put back a copy of it, "
                "and the same command goes on"
            )
        saved = multihost.share_steps(read_together(self.manager.steps, self._checkpoints()))
        intervention = plan_rewind(self.guard, spike, saved, interventions, source.row_interval)
        try:
            source.skipping(intervention.skip_rows).check_enough(self.train_steps)
        except UserError as error:
            raise UserError(
                f"stopped by a spike that began at step {spike.step}: {spike.reason}; jumping over the batches around "
                f"it needs more data than there is: {error}"
            ) from error
        self._append(intervention)
        back = intervention.rewind_to
        where = f"step {back}" if back else "its beginning, which no checkpoint is nearer to"
        logger.warning("the run goes back to %s and jumps over the global rows %s", where, intervention.skip_rows)
        return intervention

    def _append(self, intervention: Intervention) -> None:
        """Writes an intervention down, from process 0; returns, or raises, in all processes when that is done.

        Raises:
          UserError: it cannot be written.
        """
        failure = None
        if multihost.is_primary():
            try:
                append_intervention(self.model_dir, intervention)
            except Exception as error:
                failure = error
        if (error := multihost.share_error(failure)) is not None:
            raise error

    def _checkpoints(self) -> str:
        return f"the checkpoints in {self.model_dir}"

    def _load(self) -> tuple[Intervention, ...]:
        interventions = check_interventions(self.manager, self.model_dir)
        word = int(describe_known(interventions)[DIGEST][:15], 16)
        if not multihost.all_agree(multihost.share_word(word) == word):
            raise UserError(f"not every process sees {interventions_path(self.model_dir)} as process 0 does")
        return interventions

    def _leave(self, interventions: tuple[Intervention, ...], source: BatchSource) -> None:
        """Sets aside the checkpoints of courses that were given up, if `source` can go on from what is left.

        Raises:
          UserError: it cannot; nothing was changed.
        """
        if not interventions:
            return

        def look() -> tuple[list[int], list[int]]:
            # Process 0 looks, for all: while another one reads, the first of them may already be renamed.
            steps = self.manager.steps() if multihost.is_primary() else []
            stale = [step for step in steps if self._is_stale(step, interventions)]
            return stale, [step for step in steps if step not in stale]

        stale, left = map(multihost.share_steps, read_together(look, self._checkpoints()))
        if stale:
            read_together(lambda: self._check_rows(source, left), self._checkpoints())
            self.manager.set_aside(stale)

    def _check_rows(self, source: BatchSource, left: Sequence[int]) -> None:
        try:
            step, metadata = _read_newest(self.manager, left)
            source = source if metadata is None else source.resumed(metadata["data"], step)
            source.check_enough(self.train_steps)
        except UserError as error:
            path = interventions_path(self.model_dir)
            raise UserError(f"{error} ({path} cannot be followed; no checkpoint was set aside)") from error

    def _is_stale(self, step: int, interventions: tuple[Intervention, ...]) -> bool:
        if not is_stale(step, 0, interventions):
            return False
        try:
            return is_stale(step, known_interventions(self.manager.read_metadata(step)), interventions)
        except DamagedError:
            return False  # It will not be restored, and the restore will say so.

    def _compare(self, restored: Restored) -> tuple[dict[str, Any], bool]:
        """The run's record from now on, if the policy allows this command to go on, and whether anything changes."""
        decision = compare_run_records(restored.metadata["run"], self.record, restored.step)
        for warning in decision.warnings:
            logger.warning("%s", warning)
        for change in decision.changes:
            logger.warning("changed from step %d on: %s", restored.step, change.render())
        return decision.record, bool(decision.changes)

    def _make_start(
        self,
        step: int,
        state: TrainState,
        source: BatchSource,
        interventions: tuple[Intervention, ...],
        known: int = 0,
        record: dict[str, Any] | None = None,
        spikes: Mapping[str, Any] | None = None,
    ) -> Start:
        metadata = {"run": self.record if record is None else record, **describe_known(interventions)}
        return Start(step, state, source, metadata, spikes, interventions[known:])
