"""Which checkpoints stay. Process 0 deletes the others, in the background, and only what is safely superseded."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection

from t5x_scale.checkpoint import layout, multihost
from t5x_scale.checkpoint.config import CheckpointConfig
from t5x_scale.checkpoint.layout import LOGGER
from t5x_scale.core import files

_PAUSES_SECONDS = (0.01, 0.1, 1.0, 5.0)


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


def find_steps_since(steps: Collection[int], since: int) -> list[int]:
    """The steps from the newest at or below `since` on: what a run needs to go back to `since`, or further."""
    before = max((step for step in steps if step <= since), default=None)
    return sorted(step for step in steps if step >= since or step == before)


class Keeper:
    """What is known of the checkpoints in a directory, and the thread that deletes.

    A checkpoint is *proven* when this run has restored and verified it, or has read it back from storage after its
    commit. The newest proven one is never deleted, however old; where checkpoints are read back, nothing at all is
    deleted before one is proven.

    Attributes:
      since: a step; all from the newest at or below it on are kept. None asks for nothing.
    """

    def __init__(self, directory: files.Path, config: CheckpointConfig):
        self.since: int | None = None
        self._directory, self._config = directory, config
        self._proven: set[int] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def prove(self, step: int) -> None:
        """The checkpoint of `step` is known to verify."""
        with self._lock:
            self._proven.add(step)

    def disprove(self, step: int) -> None:
        """The checkpoint of `step` is about to be another one, or was found damaged."""
        with self._lock:
            self._proven.discard(step)

    def newest_proven(self, steps: Collection[int]) -> int | None:
        """The newest of `steps` that is known to verify."""
        with self._lock:
            return max(self._proven.intersection(steps), default=None)

    def choose(self, steps: Collection[int], position: int | None) -> list[int]:
        """The steps to delete now, of those that are there; `position` is the one the run goes on from."""
        proven = self.newest_proven(steps)
        if proven is None and self._config.read_back:
            return []
        protected = {position, proven}
        if self.since is not None:
            protected.update(find_steps_since(steps, self.since))
        return choose_steps_to_delete(steps, self._config, protected)

    def start_deleting(self, position: int | None) -> None:
        """Deletes in the background; called only when every step on storage is committed."""
        self.join()
        if multihost.is_primary():
            self._thread = threading.Thread(target=self._delete, args=(position,), name="delete_checkpoints")
            self._thread.start()

    def join(self) -> None:
        """Waits until nothing is being deleted."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _delete(self, position: int | None) -> None:
        try:
            for step in self.choose(layout.list_steps(self._directory), position):
                layout.delete_step(self._directory, step)
        except Exception as error:
            LOGGER.warning("an old checkpoint in %s could not be deleted: %s", self._directory, error)


def remove_leftover(leftover: files.Path) -> None:
    """Deletes a leftover. Threads of a save that failed a moment ago may still be writing there."""
    for pause in (*_PAUSES_SECONDS, None):
        try:
            leftover.rmtree()
            return
        except FileNotFoundError:
            return
        except OSError:
            if pause is None:
                raise
            time.sleep(pause)
