"""Reading a checkpoint again when it is committed, in the background and without devices.

What was written is read through the same storage, decoded and fingerprinted on the hosts, each process a share of the
blocks: it proves that what a restore would read is what the devices held. On a disk much of it comes from the page
cache, so that a sector that rots later is found by `t5x_scale verify` and by the restore, not here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping

import jax

from t5x_scale.checkpoint import integrity, layout, lazy_reader, multihost
from t5x_scale.checkpoint.keeping import Keeper
from t5x_scale.checkpoint.layout import LOGGER, DamagedError
from t5x_scale.core import files
from t5x_scale.core.errors import first_line
from t5x_scale.core.storage_errors import explained

_ANSWER_SECONDS, _SHARE_SECONDS = 60.0, 1200.0


class _Cancelled(Exception):
    pass


class ReadBack:
    """Reads one checkpoint at a time; one that is committed meanwhile is left out, and the next one taken again.

    Args:
      directory: of all steps.
      keeper: is told what is proven.
      on_damage: called with the step, and the reason, of one that does not read back as it was saved.
    """

    def __init__(self, directory: files.Path, keeper: Keeper, on_damage: Callable[[int, str], None]):
        self._directory, self._keeper, self._on_damage = directory, keeper, on_damage
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()

    def start(self, step: int, name: str) -> None:
        """Begins to read a step that was just committed; called by every process, with a name that only this has."""
        try:
            if not self._is_free(name):
                return
        except jax.errors.JaxRuntimeError:
            return  # The other processes are gone, which others find out and say.
        self._thread = threading.Thread(target=self._run, args=(step, name), name="read_checkpoint_back")
        self._thread.start()

    def join(self) -> None:
        """Waits until what is being read has been read."""
        if self._thread is not None:
            self._thread.join()

    def cancel(self) -> None:
        """Gives up what is being read: nothing is known of it then."""
        self._cancelled.set()
        self.join()

    def _is_free(self, name: str) -> bool:
        """Whether this process has time; process 0 decides for all, since it waits for the others' shares."""
        is_free = not self._cancelled.is_set() and (self._thread is None or not self._thread.is_alive())
        if multihost.is_alone():
            return is_free
        key = f"read_back/{name}/begin"
        if multihost.is_primary():
            multihost.publish(key, str(int(is_free)))
            return is_free
        if multihost.look_up(key, _ANSWER_SECONDS) != "1":
            return False
        self.join()
        return True

    def _run(self, step: int, name: str) -> None:
        path = layout.step_directory(self._directory, step)
        try:
            with explained(f"step {step}"):
                found = self._read(path)
                if not multihost.is_alone():
                    found = self._gather(found, name)
                if found is not None:
                    lazy_reader.check_fingerprints(found, layout.read_document(path))
                    self._keeper.prove(step)
        except DamagedError as error:
            self._keeper.disprove(step)
            LOGGER.error(
                "the checkpoint %s was written and does NOT read back as it was saved: %s. It will not be used, and "
                "older ones that verify are kept",
                *(path, error),
            )
            self._on_damage(step, str(error))
            self._tell(name, damage=str(error))
        except _Cancelled:
            self._tell(name, unknown="it ends")
        except Exception as error:
            # Memory, a network, a peer that is gone: nothing is known, and so nothing is deleted.
            LOGGER.warning("the checkpoint %s could not be read back: %s", path, first_line(error))
            self._tell(name, unknown=first_line(error))

    def _read(self, path: files.Path) -> dict[str, int]:
        """The fingerprints of this process's share of the blocks."""

        def check(*_: int) -> None:
            if self._cancelled.is_set():
                raise _Cancelled

        leaves = lazy_reader.open_leaves(path, layout.read_document(path))
        return lazy_reader.fingerprint_lazily(leaves, check, jax.process_index(), jax.process_count())

    def _gather(self, found: Mapping[str, int], name: str) -> dict[str, int] | None:
        """The fingerprints of all shares together, in process 0; None in the others.

        Raises:
          DamagedError: another process could not make sense of its share.
          RuntimeError: another process did not read it to its end.
        """
        if not multihost.is_primary():
            self._tell(name, found=found)
            return None
        total = dict(found)
        for index in range(1, jax.process_count()):
            share = json.loads(multihost.look_up(f"read_back/{name}/share_{index}", _SHARE_SECONDS))
            if "damage" in share:
                raise DamagedError(share["damage"])
            if "unknown" in share:
                raise RuntimeError(f"process {index}: {share['unknown']}")
            for path, part in share["found"].items():
                total[path] = integrity.combine((total[path], part))
        multihost.forget(f"read_back/{name}")
        return total

    def _tell(self, name: str, **answer: object) -> None:
        """Tells process 0 how this process fared."""
        if multihost.is_alone() or multihost.is_primary():
            return
        try:
            multihost.publish(f"read_back/{name}/share_{jax.process_index()}", json.dumps(answer))
        except jax.errors.JaxRuntimeError as error:
            LOGGER.warning("process 0 could not be told: %s", first_line(error))
