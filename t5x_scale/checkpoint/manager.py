"""The checkpoints of a run: saved while training goes on, committed whole, kept by policy, restored verified."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from t5x_scale.checkpoint import integrity, layout, multihost, tiers
from t5x_scale.checkpoint.config import CheckpointConfig
from t5x_scale.checkpoint.events import DAMAGED, FALLBACK, NOT_SAVED, Events, Tell
from t5x_scale.checkpoint.keeping import Keeper, remove_leftover
from t5x_scale.checkpoint.layout import LOGGER
from t5x_scale.checkpoint.local_tier import LocalTier
from t5x_scale.checkpoint.read_back import ReadBack
from t5x_scale.checkpoint.save_clock import SaveClock
from t5x_scale.checkpoint.saving import Listener, Saver, make_document, to_arrays
from t5x_scale.core import files
from t5x_scale.core.errors import UnavailableError, UserError
from t5x_scale.core.storage_errors import describe_write, explained, find_absence

__all__ = ["CheckpointConfig", "CheckpointManager", "Restored"]


@dataclasses.dataclass(frozen=True)
class Restored:
    """A verified checkpoint: the state in its shards, the caller's metadata, the step, fingerprints by path."""

    state: Any
    metadata: dict[str, Any]
    step: int
    fingerprints: dict[str, int]


class CheckpointManager:
    """Saves and restores the checkpoints under `MODEL_DIR/checkpoints`.

    One manager of one run writes at a time; any number may read. Nothing is touched on storage before the
    first save, so a manager is safe to make for reading beside a run that is writing. Every process of a run
    makes one and calls the same methods in the same order.

    A save that fails is said at once and ends nothing: what was committed stays, what was half-written never counts,
    and the next due step is saved as if nothing had been. `CheckpointConfig.max_failed_saves` in a row, or a failure
    that `wait` finds, since nothing will be tried after it, are errors.

    Args:
      model_dir: of the run.
      config: when to save and what to keep.
      on_writing: called with a step and `"begin"` or `"end"` when it begins to be written beside the steps of the run,
        and when that has ended; the end from another thread.
    """

    def __init__(
        self,
        model_dir: str | files.Path,
        config: CheckpointConfig | None = None,
        on_writing: Listener | None = None,
    ):
        self.config = config or CheckpointConfig()
        self.directory = files.to_path(model_dir) / layout.CHECKPOINTS
        self._position: int | None = None  # The step this run continues from: last restored or saved.
        self._pending: tuple[int, int | None] | None = None  # (step being written, position before it)
        self._is_only_local = False  # Whether that step stands in the local tier only.
        self._is_prepared = False
        self._failures = 0  # In a row.
        self._events = Events()
        self._keeper = Keeper(self.directory, self.config)
        self._read_back = ReadBack(self.directory, self._keeper, self._events.of(DAMAGED))
        on_commit = self._read_back.start if self.config.read_back else None
        self._saver = Saver(on_writing, on_commit, self._events.of(NOT_SAVED))
        self._clock = SaveClock(self.config.save_every_seconds, self.config.check_time_every_steps)
        self._local = None
        if self.config.local_directory is not None:
            self._local = LocalTier(self.config.local_directory, self.directory, self.config.local_keep)

    def steps(self) -> list[int]:
        """The committed steps, ascending.

        Raises:
          UserError: they cannot be listed.
        """
        with explained(f"the list of checkpoints in {self.directory}"):
            return layout.list_steps(self.directory)

    def latest(self) -> int | None:
        """The newest committed step of either tier, or None. Whether it verifies is found out by `restore`."""
        return tiers.find_newest(self.directory, self._local)

    def is_due(self, step: int) -> bool:
        """Whether `save` would save `step` without being forced. All processes ask before the same steps."""
        return self._is_due_remotely(step) or self._is_due_locally(step)

    def report_to(self, tell: Tell) -> None:
        """From now on `tell(kind, step, reason=...)` hears what went wrong, from any thread; and now, what did so far.

        Kinds are `save_failed`, `damaged` (what was written does not read back) and `fallback` (not used by a restore).
        """
        self._events.report_to(tell)

    def keep_since(self, step: int | None) -> None:
        """From now on no checkpoint is deleted from the newest at or below `step` on; None lifts this again.

        So a run can go back to `step`, or a little further, whatever the policy says. Process 0's word counts.
        """
        self._keeper.since = step

    def set_aside(self, steps: Collection[int]) -> None:
        """Takes committed steps out of the run: they are of a course that it has left. Renamed, and never deleted.

        What the run goes on from has to be restored, or begun, afterwards. All processes name the same steps.

        Raises:
          UserError: they cannot be renamed; in all processes.
        """
        if not steps:
            return
        self.wait(is_last=False)
        for step in steps:
            self._keeper.disprove(step)
        failure = self._set_aside(steps) if multihost.is_primary() else None
        if (error := multihost.share_error(failure)) is not None:
            raise error
        if self._local:
            self._local.drop_from(min(steps))
        self._position, self._is_prepared = None, False

    def _set_aside(self, steps: Collection[int]) -> Exception | None:
        try:
            for step in steps:
                layout.set_aside(self.directory, step)
        except Exception as error:
            kind = UnavailableError if find_absence(error) else UserError
            failure = kind(f"step {step} in {self.directory} cannot be set aside: {describe_write(error)}")
            failure.__cause__ = error
            return failure
        return None

    def save(self, step: int, state: Any, metadata: Mapping[str, Any], force: bool = False) -> bool:
        """Saves `state` with `metadata` if `step` is due; returns once the state may be donated or overwritten.

        A save that is still being written is waited for first. Steps at or above `step` that stand there from
        a timeline this run did not continue (it restored an older step) are set aside under another name.

        Args:
          step: the number of steps done; the name of the checkpoint.
          state: any pytree of arrays.
          metadata: JSON values: the position of the *next* batch and whatever a resume compares.
          force: save even if the step is not due.

        Returns:
          Whether a save was started. A step that was restored or saved already is not saved again.

        Raises:
          UserError: the directory holds steps of a run that was not restored, or too many saves in a row failed.
        """
        if not (force or self._is_due_remotely(step)):
            return self._save_locally(step, state, metadata)
        self._settle(is_last=False)
        if step == self._position and not self._is_only_local:
            return False
        self._clock.restart()
        leaves = layout.flatten_leaves(state)
        document = layout.render_document(make_document(step, leaves, metadata))
        self._pending, position, self._position = (step, self._position), self._position, step
        error = self._prepare(step, position)
        if error is not None:
            LOGGER.error(
                "the checkpoint of step %d in %s is NOT saved: %s", step, self.directory, describe_write(error)
            )
            self._events.tell(NOT_SAVED, step, describe_write(error))
            self._fail(error, is_last=False)
            return False
        self._keeper.start_deleting(position)
        self._keeper.disprove(step)
        self._is_only_local = False
        self._saver.start(layout.step_directory(self.directory, step), to_arrays(leaves), document)
        if not self.config.asynchronous:
            self.wait()
        return True

    def _is_due_remotely(self, step: int) -> bool:
        every = self.config.save_every_steps
        is_due = self._clock.is_due(step) or (every > 0 and step % every == 0)
        return is_due and step > 0 and step != self._position

    def _is_due_locally(self, step: int) -> bool:
        is_due = self._local is not None and step > 0 and step % self.config.local_every_steps == 0
        return is_due and step != self._position

    def _save_locally(self, step: int, state: Any, metadata: Mapping[str, Any]) -> bool:
        if not self._is_due_locally(step):
            return False
        leaves = layout.flatten_leaves(state)
        self._local.save(step, leaves, make_document(step, leaves, metadata))
        return True

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored:
        """Restores the newest checkpoint that verifies, or exactly `step`.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings, of any mesh.
          step: the one step wanted; None for the newest that can be trusted.

        Raises:
          UserError: there is none, or none verifies; or a leaf is missing, unexpected, or of another shape or
            dtype, which is found from the metadata before anything is read; or the storage does not answer.
        """
        self._settle(is_last=False)
        wanted = layout.flatten_leaves(abstract_state)
        found = tiers.restore_newest(self.directory, self._local, wanted, step, self._events.of(FALLBACK))
        document = found.document
        self._position, self._is_prepared, self._is_only_local = document.step, False, not found.is_in_directory
        if not found.is_from_machines:
            self._keeper.prove(document.step)
        return Restored(
            state=layout.unflatten_leaves(abstract_state, found.arrays),
            metadata=document.metadata,
            step=document.step,
            fingerprints={path: integrity.from_text(leaf.fingerprint) for path, leaf in document.leaves.items()},
        )

    def read_metadata(self, step: int) -> dict[str, Any]:
        """The metadata that was saved with a step, without its arrays.

        Raises:
          DamagedError: the step is not there, or its metadata cannot be trusted.
          UserError: it may not be read, or the storage does not answer.
        """
        with explained(f"the metadata of step {step} in {self.directory}"):
            return layout.read_document(layout.step_directory(self.directory, step)).metadata

    def wait(self, is_last: bool = True) -> None:
        """Waits until the save in progress is committed and read back, and until what the policy lets go is deleted.

        Args:
          is_last: whether a save that failed is an error now; otherwise it counts as one that another may follow.

        Raises:
          UserError: the save failed.
        """
        self._settle(is_last)
        if self._local:
            self._local.wait()
        if self._is_prepared:
            self._read_back.join()
            self._keeper.start_deleting(self._position)
            self._keeper.join()

    def close(self) -> None:
        """`wait`, then releases threads. The manager must not be used afterwards."""
        try:
            self.wait()
        finally:
            self._release()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if kind is None:
            self.close()
        else:
            self._release()

    def _release(self) -> None:
        self._read_back.cancel()
        self._saver.close()
        if self._local:
            self._local.wait()
        self._keeper.join()

    def _settle(self, is_last: bool) -> None:
        """Waits for the save in progress, if there is one; nothing is tried after it if it `is_last`."""
        error = self._saver.finish()
        if error is not None:
            self._fail(error, is_last)
        elif self._pending is not None:
            self._pending, self._failures = None, 0

    def _fail(self, error: Exception, is_last: bool) -> None:
        """Forgets the step whose save failed.

        Raises:
          UserError: it was the last of too many, or of all.
        """
        step, self._position = self._pending
        self._pending, self._is_prepared, self._failures = None, False, self._failures + 1
        if not is_last and self._failures < self.config.max_failed_saves:
            return
        count = f" (the last of {self._failures} in a row)" if self._failures > 1 else ""
        raise UserError(
            f"saving the checkpoint of step {step} in {self.directory} failed{count}: {describe_write(error)}"
        ) from error

    def _prepare(self, step: int, position: int | None) -> Exception | None:
        """Before the first save, and after a failed one: clears leftovers and makes room for `step`.

        Returns:
          What went wrong with the storage, in all processes if in one.

        Raises:
          UserError: the steps that are there belong to another run.
        """
        if self._is_prepared:
            return None
        error: Exception | None = None
        steps: list[int] = []
        try:
            files.make_directory(self.directory)
            steps = self.steps()
        except Exception as failure:
            error = failure
        newer = [saved for saved in multihost.share_steps(steps) if saved >= step]
        if newer and position is None:
            raise UserError(
                f"{self.directory} already holds step {newer[-1]} of another run, and this run is at step {step}; "
                "nothing was overwritten: use a new MODEL_DIR"
            )
        try:
            if error is None and multihost.is_primary():
                self._clear(newer)
        except Exception as failure:
            error = failure
        self._is_prepared = multihost.all_agree(error is None)
        return None if self._is_prepared else error or OSError("another process cannot write there")

    def _clear(self, newer: list[int]) -> None:
        for leftover in layout.list_leftovers(self.directory):
            remove_leftover(leftover)
        for saved in newer:
            layout.set_aside(self.directory, saved)
