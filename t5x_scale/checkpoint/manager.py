"""The checkpoints of a run: saved while training goes on, committed whole, kept by policy, restored verified."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from t5x_scale.checkpoint import integrity, layout, multihost, restore
from t5x_scale.checkpoint.layout import LOGGER, Document, LeafRecord
from t5x_scale.core import files, trees
from t5x_scale.core.environment import describe_environment
from t5x_scale.core.errors import UserError
from t5x_scale.core.zarr_arrays import first_line

MAX_CHUNK_BYTES = 1 << 25
_MIN_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep.

    Attributes:
      save_every_steps: a step is due when it is a multiple of this; 0 saves only when forced.
      keep: newest checkpoints to keep; None keeps all.
      keep_every_steps: multiples of this are kept for ever; None keeps none of them.
      asynchronous: whether writing goes on in the background.
      save_final: whether the loop saves its last step, due or not.
    """

    save_every_steps: int = 1000
    keep: int | None = 3
    keep_every_steps: int | None = None
    asynchronous: bool = True
    save_final: bool = True

    def __post_init__(self) -> None:
        if self.save_every_steps < 0:
            raise UserError(f"CheckpointConfig.save_every_steps is {self.save_every_steps}; it must be 0 or more")
        for name in ("keep", "keep_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"CheckpointConfig.{name} is {value}; it must be 1 or more, or None")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A verified checkpoint: the state in its shards, the caller's metadata, the step, fingerprints by path."""

    state: Any
    metadata: dict[str, Any]
    step: int
    fingerprints: dict[str, int]


def choose_steps_to_delete(
    steps: Collection[int], config: CheckpointConfig, protected: Collection[int] = ()
) -> list[int]:
    """The committed steps that the policy no longer keeps, ascending; never one of `protected`, never the newest."""
    if config.keep is None:
        return []
    newest = sorted(steps)[-config.keep :]
    every = config.keep_every_steps
    return [
        step
        for step in sorted(steps)
        if step not in newest and step not in protected and not (every and step % every == 0)
    ]


class CheckpointManager:
    """Saves and restores the checkpoints under `MODEL_DIR/checkpoints`.

    One manager of one run writes at a time; any number may read. Nothing is touched on storage before the
    first save, so a manager is safe to make for reading beside a run that is writing. Every process of a run
    makes one and calls the same methods in the same order.
    """

    def __init__(self, model_dir: str | files.Path, config: CheckpointConfig | None = None):
        self.config = config or CheckpointConfig()
        self.directory = files.to_path(model_dir) / layout.CHECKPOINTS
        self._position: int | None = None  # The step this run continues from: last restored or saved.
        self._pending: tuple[int, int | None] | None = None  # (step being written, position before it)
        self._is_prepared = False
        self._deleter: threading.Thread | None = None
        self._checkpointer: ocp.AsyncCheckpointer | None = None

    def steps(self) -> list[int]:
        """The committed steps, ascending."""
        return layout.list_steps(self.directory)

    def latest(self) -> int | None:
        """The newest committed step, or None. Whether it verifies is found out by `restore`."""
        steps = multihost.share_steps(self.steps())
        return steps[-1] if steps else None

    def is_due(self, step: int) -> bool:
        """Whether `save` would save `step` without being forced."""
        every = self.config.save_every_steps
        return every > 0 and step > 0 and step % every == 0 and step != self._position

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
          UserError: the directory cannot be written or holds steps of a run that was not restored, or the
            save before this one failed.
        """
        with self._failures():
            if self._checkpointer is not None:
                self._checkpointer.check_for_errors()
        if step == self._position or not (force or self.is_due(step)):
            return False
        self._wait()
        self._prepare(step)
        self._start_deleting()
        leaves = layout.flatten_leaves(state)
        document = layout.render_document(make_document(step, leaves, metadata))
        self._pending = (step, self._position)
        self._position = step
        with self._failures():
            if self._checkpointer is None:
                self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
            arrays = trees.unflatten(_to_arrays(leaves))
            self._checkpointer.save(
                layout.step_directory(self.directory, step),
                args=ocp.args.Composite(
                    **{
                        layout.STATE_ITEM: ocp.args.PyTreeSave(arrays, jax.tree.map(_choose_chunks, arrays)),
                        layout.METADATA_ITEM: ocp.args.JsonSave(document),
                    }
                ),
            )
        if not self.config.asynchronous:
            self.wait()
        return True

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored:
        """Restores the newest checkpoint that verifies, or exactly `step`.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings, of any mesh.
          step: the one step wanted; None for the newest that can be trusted.

        Raises:
          UserError: there is none, or none verifies; or a leaf is missing, unexpected, or of another shape or
            dtype, which is found from the metadata before anything is read.
        """
        self._wait()
        steps = multihost.share_steps(self.steps())[::-1]
        if not steps:
            raise UserError(f"{self.directory} holds no finished checkpoint")
        if step is not None and step not in steps:
            raise UserError(f"{self.directory} has no checkpoint of step {step}; it has {_render_steps(steps)}")
        wanted = layout.flatten_leaves(abstract_state)

        def read(candidate: int) -> tuple[Document, dict[str, jax.Array]]:
            path = layout.step_directory(self.directory, candidate)
            document = restore.read_document(path)
            layout.check_leaves(document, wanted, str(path))
            return document, restore.read_verified_leaves(path, document, wanted)

        candidates = steps if step is None else [step]
        found, (document, arrays) = restore.first_that_verifies(self.directory, candidates, read)
        self._position, self._is_prepared = found, False
        return Restored(
            state=layout.unflatten_leaves(abstract_state, arrays),
            metadata=document.metadata,
            step=found,
            fingerprints={path: integrity.from_text(leaf.fingerprint) for path, leaf in document.leaves.items()},
        )

    def read_metadata(self, step: int) -> dict[str, Any]:
        """The metadata that was saved with a step, without its arrays.

        Raises:
          UserError: the step is not there, or its metadata is damaged.
        """
        path = layout.step_directory(self.directory, step)
        try:
            return layout.read_document(path).metadata
        except layout.DamagedError as error:
            raise UserError(f"the checkpoint {path} cannot be used: {error}") from error

    def wait(self) -> None:
        """Waits until the save in progress is committed and what the policy no longer keeps is deleted.

        Raises:
          UserError: the save failed.
        """
        self._wait()
        if self._is_prepared:
            self._start_deleting()
            self._join_deleter()

    def close(self) -> None:
        """`wait`, then releases threads. The manager must not be used afterwards."""
        try:
            self.wait()
        finally:
            if self._checkpointer is not None:
                self._checkpointer.close()
                self._checkpointer = None

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _wait(self) -> None:
        with self._failures():
            if self._checkpointer is not None:
                self._checkpointer.wait_until_finished()
        self._pending = None

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns the failure of the save in progress into one line, and forgets that step."""
        try:
            yield
        except Exception as error:
            step, self._position = self._pending or (None, self._position)
            self._pending, self._is_prepared = None, False
            reason = first_line(error)
            raise UserError(f"saving the checkpoint of step {step} in {self.directory} failed: {reason}") from error

    def _prepare(self, step: int) -> None:
        """Before the first save, and after a failed one: clears leftovers and makes room for `step`."""
        if self._is_prepared:
            return
        files.make_directory(self.directory)
        newer = [saved for saved in multihost.share_steps(self.steps()) if saved >= step]
        if newer and self._position is None:
            raise UserError(
                f"{self.directory} already holds step {newer[-1]} of another run, and this run is at step {step}; "
                "nothing was overwritten: use a new MODEL_DIR"
            )
        if multihost.is_primary():
            for leftover in layout.list_leftovers(self.directory):
                leftover.rmtree()
            for saved in newer:
                layout.set_aside(self.directory, saved)
        multihost.synchronise("checkpoint directory prepared")
        self._is_prepared = True

    def _start_deleting(self) -> None:
        """Deletes in the background; called only when every step on storage is committed."""
        self._join_deleter()
        if multihost.is_primary():
            self._deleter = threading.Thread(target=self._delete_old, args=(self._position,), name="delete_checkpoints")
            self._deleter.start()

    def _join_deleter(self) -> None:
        if self._deleter is not None:
            self._deleter.join()
            self._deleter = None

    def _delete_old(self, position: int | None) -> None:
        try:
            for step in choose_steps_to_delete(self.steps(), self.config, protected=(position,)):
                layout.delete_step(self.directory, step)
        except Exception as error:
            LOGGER.warning("an old checkpoint in %s could not be deleted: %s", self.directory, error)


def make_document(step: int, leaves: Mapping[str, Any], metadata: Mapping[str, Any]) -> Document:
    """The document saved with a step: fingerprints are computed here, on the devices that hold the leaves."""
    fingerprints = integrity.fingerprint_leaves(leaves)
    records = {}
    for path, leaf in leaves.items():
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        records[path] = LeafRecord(tuple(leaf.shape), str(leaf.dtype), integrity.to_text(fingerprints[path]))
    return Document(step, records, {"environment": describe_environment(), **metadata})


def _to_arrays(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {path: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for path, leaf in leaves.items()}


def _choose_chunks(array: jax.Array | np.ndarray) -> ocp.SaveArgs:
    """How an array, or each shard of it, is cut in storage, so that a part of it can be read without the rest.

    A stack of three or more dimensions is cut into its layers first, where these are large enough: conversions go
    through a model layer by layer. Left to itself Orbax writes a shard as one chunk, whatever its size.
    """
    shape = array.sharding.shard_shape(array.shape) if isinstance(array, jax.Array) else array.shape
    layer_bytes = math.prod(shape[1:]) * array.dtype.itemsize
    is_stack = len(shape) > 2 and layer_bytes >= _MIN_CHUNK_BYTES
    return ocp.SaveArgs(chunk_byte_size=MAX_CHUNK_BYTES, shard_axes=(0,) if is_stack else ())


def _render_steps(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:10])) + (", ..." if len(steps) > 10 else "")
