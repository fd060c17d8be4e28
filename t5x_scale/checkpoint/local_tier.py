"""Frequent checkpoints in the memory or on the disk of the machines themselves, for a restart on the same ones.

Each process keeps its own shards under `local_directory/<run>/<process>/<step>`, written by a thread in the time that
memory takes, with the fingerprints of whole leaves. A restart uses the newest step that all processes have, and trusts
it only when the leaves, put together on the devices, have those fingerprints. What was left there by another run, a
course that was given up, another mesh or another number of processes is passed over with a line, and the checkpoint in
MODEL_DIR is used; so it is where a machine was replaced, whose memory is gone.

Orbax's managers for this (`orbax.checkpoint.experimental.emergency`, and its multi-tier one, which wants a replicator
beside every job on Kubernetes) also send a lost shard from another slice that holds a replica. They are marked as
experimental, need a mesh whose outer axis replicates the whole state, decide by themselves what is saved and kept, and
hand on whatever bits they find. Here state is sharded over all slices as often as not, and unverified bits are never
trained on; so they are not used.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Mapping
from typing import Any

import jax

from t5x_scale.checkpoint import layout, multihost, restore, timeline
from t5x_scale.checkpoint.layout import LOGGER, DamagedError, Document
from t5x_scale.checkpoint.shard_files import ShardReader, copy_shards, write_shards
from t5x_scale.checkpoint.together import list_together, read_together
from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.core.storage_errors import find_absence

_RUN_FILE = "run_id"


class LocalTier:
    """The local checkpoints of one process. All processes make one and call the same methods in the same order.

    Args:
      local_directory: of the machine.
      directory: `MODEL_DIR/checkpoints`, which knows which run this is.
      keep: newest steps to keep, beside the one before them: another process may not have finished its newest.

    Raises:
      UserError: the local directory is none, and cannot become one. Nothing is created yet.
    """

    def __init__(self, local_directory: str, directory: files.Path, keep: int):
        self._root, self._directory, self._keep = files.to_path(local_directory), directory, keep
        _check_directory(self._root)
        self._own: files.Path | None = None
        self._thread: threading.Thread | None = None
        self._has_failed = False

    def steps(self) -> list[int]:
        """The steps that every process has and that belong to the course of the run, ascending.

        There are none before MODEL_DIR holds a checkpoint: there must be something to fall back to.
        """
        own = self._find_own(create=False)
        if not list_together(self._directory):
            return []
        run = self._directory.parent
        interventions = read_together(lambda: timeline.load_interventions(run), str(timeline.interventions_path(run)))
        steps = [] if own is None else _list_steps(own)
        return multihost.common_steps([step for step in steps if not self._is_stale(step, interventions)])

    def save(self, step: int, leaves: Mapping[str, Any], document: Document) -> None:
        """Copies the shards of this process, and writes them in the background. A failure is a warning."""
        own = self._find_own(create=True)
        shards = copy_shards(leaves)
        self.wait()
        if own is not None:
            self._thread = threading.Thread(target=self._write, args=(own, document, shards), name="save_locally")
            self._thread.start()

    def restore(self, step: int, abstract: Mapping[str, Any]) -> tuple[Document, dict[str, jax.Array]]:
        """The leaves of a step that all processes have, verified.

        Raises:
          DamagedError: in some process it is not there, not what this run needs, or not what was saved.
        """
        self.wait()
        reader, failure = None, None
        try:
            reader = ShardReader(layout.step_directory(self._own, step))
        except DamagedError as error:
            failure = error
        if (error := multihost.share_error(failure)) is not None:
            raise error
        restore.check_same(reader.document)
        return reader.document, restore.read_verified_leaves(reader.read, reader.document, abstract)

    def drop_from(self, step: int) -> None:
        """Deletes this process's steps at or above `step`: the run does not go on from them."""
        self.wait()
        own = self._find_own(create=False)
        for candidate in [] if own is None else _list_steps(own):
            if candidate >= step:
                shutil.rmtree(layout.step_directory(own, candidate), ignore_errors=True)

    def wait(self) -> None:
        """Waits until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, own: files.Path, document: Document, shards: Mapping[Any, Any]) -> None:
        try:
            write_shards(own, document, shards)
            steps = layout.list_steps(own)
            for step in steps[: -self._keep - 1]:
                shutil.rmtree(layout.step_directory(own, step))
            self._has_failed = False
        except (OSError, UserError) as error:
            if not self._has_failed:
                LOGGER.warning("the local checkpoint of step %d is not saved: %s", document.step, error)
            self._has_failed = True

    def _is_stale(self, step: int, interventions: tuple[timeline.Intervention, ...]) -> bool:
        try:
            metadata = ShardReader(layout.step_directory(self._own, step)).document.metadata
        except DamagedError:
            return False  # Will be found, and said, by whoever restores it.
        return timeline.is_stale(step, timeline.known_interventions(metadata), interventions)

    def _find_own(self, create: bool) -> files.Path | None:
        """This process's directory of this run; None where the run has none yet."""
        if self._own is None:

            def read() -> int:
                return _read_run(self._directory, create) if multihost.is_primary() else 0

            # What is saved is saved elsewhere too; what is restored would be an older step.
            word = multihost.share_word(read() if create else read_together(read, os.fspath(self._directory)))
            if word:
                self._own = self._root / f"{word:016x}" / str(jax.process_index())
        return self._own


def _check_directory(path: files.Path) -> None:
    """Raises a UserError unless `path` is a directory that can be written to, or can be made one."""
    place = os.fspath(path)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        reason = f"{place} is no directory"
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = f"{place} cannot be written to"
    else:
        return
    raise UserError(f"CheckpointConfig.local_directory is {path}, where no checkpoints can be kept: {reason}")


def _list_steps(own: files.Path) -> list[int]:
    """`layout.list_steps`; none where they cannot be listed, since the other processes wait for an answer."""
    try:
        return layout.list_steps(own)
    except OSError as error:
        LOGGER.warning("%s cannot be listed, and so its local checkpoints are not used: %s", own, error.strerror)
        return []


def _read_run(directory: files.Path, create: bool) -> int:
    """The number by which this run is known to its machines; 0 if it has none. A new MODEL_DIR has another one.

    Where it shall not be created, the storage being away is an error.
    """
    path = directory / _RUN_FILE
    try:
        with contextlib.suppress(FileNotFoundError):
            return int(path.read_text(), 16) % (1 << 62)
        if create:
            number = secrets.randbits(61) + 1
            directory.mkdir(parents=True, exist_ok=True)
            files.write_text(path, f"{number:016x}")
            return number
    except Exception as error:
        if not create and find_absence(error):
            raise
        LOGGER.warning("%s cannot be used, and so no local checkpoints: %s", os.fspath(path), error)
    return 0
