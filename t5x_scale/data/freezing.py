"""Freezing documents into a token store, once, whoever asks and however often it is interrupted.

On a local disk a store is built in a sibling directory and renamed when its manifest is written; one process builds
under a file lock, which the system releases when that process dies. In an object store, where nothing can be renamed,
the manifest is the last object written.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data.store_manifest import is_finished
from t5x_scale.data.token_store import TokenStore, TokenStoreWriter

logger = logging.getLogger(__name__)

# Seconds between two signs of life of a builder, and between two looks of those that wait.
_HEARTBEAT = 5.0
_POLL = 0.2
# Each sign in an object store is a request, and each look one by every waiting process.
_REMOTE_HEARTBEAT = 30.0
_REMOTE_POLL = 5.0
# Seconds until those that wait say so, and between one line and the next.
_SAID_AFTER = 10.0
_SAID_EVERY = 180.0
_EXPECTED = "there is a sign of its life, of which none is seen yet; every process must see the disk of store_dir"
# The object that is written again and again where a directory has no time.
_LIFE = "builder_lives"
# Seconds without a sign of life after which waiting is given up. A source may download before its first document.
PATIENCE = 1800.0


def freeze(
    documents: Iterable[np.ndarray],
    directory: str | os.PathLike,
    *,
    source: Mapping[str, Any],
    vocabulary_fingerprint: str,
    vocabulary_size: int,
    separator_id: int,
    chunk: int | None = None,
) -> TokenStore:
    """Builds a store from documents (integer [n] each) in this process and opens it; `data.building` uses all cores.

    The memory used does not grow with the corpus. If anything fails, `directory` is as it was.

    Args:
      documents: token ids of each document, in order.
      directory: local or `gs://`; must not exist, or be empty.
      source, vocabulary_fingerprint, vocabulary_size, separator_id, chunk: see `TokenStoreWriter`.

    Raises:
      UserError: no documents, an id outside the vocabulary, a directory that is in use or cannot be written.
    """
    target = files.to_path(directory)
    remote = files.is_remote(target)
    building = building_directory(target)
    if is_finished(target):
        raise UserError(f"{target} already holds a token store")
    if not remote:
        files.make_directory(target.parent)
        # Left by a build that was killed.
        shutil.rmtree(building, ignore_errors=True)
    try:
        with TokenStoreWriter(
            target if remote else building / "store",
            source=source,
            vocabulary_fingerprint=vocabulary_fingerprint,
            vocabulary_size=vocabulary_size,
            separator_id=separator_id,
            chunk=chunk,
        ) as writer:
            beat = heartbeat(building)
            for document in documents:
                writer.add(document)
                beat()
        if not remote:
            place(building / "store", target)
    finally:
        remove_tree(building)
    return TokenStore.open(target, vocabulary_fingerprint)


def remove_tree(directory: files.Path) -> None:
    """Deletes a directory, local or `gs://`, if there is one."""
    if files.is_remote(directory):
        if files.exists(directory):
            directory.rmtree()
    else:
        shutil.rmtree(directory, ignore_errors=True)


def ensure(
    directory: str | os.PathLike,
    build: Callable[[], object],
    *,
    vocabulary_fingerprint: str,
    process_index: int = 0,
    patience: float = PATIENCE,
) -> TokenStore:
    """Opens the store in `directory`; if there is none, process 0 calls `build()` and the others wait for it.

    Any number of processes, of one run or of several, may ask for the same store at once.

    Args:
      directory: local or `gs://`, visible to every process.
      build: puts a finished store there; called in at most one process, and only when the store is not finished.
      vocabulary_fingerprint: of the vocabulary that the store must have been built with.
      process_index: 0 builds; others wait.
      patience: seconds without a sign of life from the builder after which the others give up.

    Raises:
      UserError: as `build` and `TokenStore.open`; or the builder gave no sign of life for `patience` seconds.
      UnavailableError: the storage does not answer.
    """
    target = files.to_path(directory)
    if not is_finished(target) and process_index == 0:
        with _lock(target):
            # Another run may have built it while this one waited for the lock.
            if not is_finished(target):
                build()
    elif not is_finished(target):
        _wait(target, patience)
    return TokenStore.open(target, vocabulary_fingerprint)


def building_directory(target: files.Path) -> files.Path:
    """Where the store `target` is built. On a local disk its time is the builder's sign of life, in an object store
    the content of an object in it.
    """
    return target.parent / f".{target.name}.building"


def heartbeat(building: files.Path) -> Callable[[], None]:
    """A function to be called often; now and then it shows those who wait that the builder lives."""
    remote = files.is_remote(building)
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > (_REMOTE_HEARTBEAT if remote else _HEARTBEAT):
            last = time.monotonic()
            # A sign that fails is none, and no reason to end the build. (What gcsfs raises has no class in common.)
            with contextlib.suppress(Exception):
                if remote:
                    (building / _LIFE).write_text(str(last))
                else:
                    os.utime(building)

    return beat


def place(store: files.Path, target: files.Path) -> None:
    """Renames a finished store on a local disk to where it belongs.

    Raises:
      UserError: something else is there.
    """
    try:
        # Replaces an empty directory, and refuses one that holds anything.
        os.rename(store, target)
    except OSError as error:
        raise UserError(
            f"cannot place the token store at {target}: {error.strerror or error}; it must not exist or be empty"
        ) from error


@contextlib.contextmanager
def _lock(target: files.Path) -> Iterator[None]:
    """Holds the one right to build `target`. Object stores have no locks: there process 0 of one run is trusted."""
    if files.is_remote(target):
        yield
        return
    files.make_directory(target.parent)
    path = target.parent / f".{target.name}.lock"
    with open(path, "w") as file:
        for waited in _looks(target):
            if _take(file) or is_finished(target):
                break
            if waited is not None:
                logger.warning(
                    "another process builds the token store %s: waiting until it has, or ends and gives %s free "
                    "(%.0f s so far)",
                    *(target, path, waited),
                )
        yield


def _take(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # Some network file systems have no locks either.
    return True


def _wait(target: files.Path, patience: float) -> None:
    deadline, last_sign = time.monotonic() + patience, None
    for waited in _looks(target, _SAID_AFTER):
        if is_finished(target):
            return
        sign, now = _sign_of_life(target), time.monotonic()
        if sign != last_sign:
            deadline, last_sign = now + patience, sign
        if now > deadline:
            raise UserError(
                f"waited {patience:g} s for process 0 to build the token store {target}: it failed, or store_dir is "
                "not on a disk that every process sees"
            )
        if waited is not None:
            logger.warning(
                "waiting for process 0 to build the token store %s (%.0f s so far): gives up in %.0f s unless %s",
                *(target, waited, deadline - now, _EXPECTED if sign is None else "there is another sign of its life"),
            )


def _looks(target: files.Path, said_after: float = 0.0) -> Iterator[float | None]:
    """Moments to look whether a store is there: the seconds waited, where it is time to say so, else None."""
    begin, due = time.monotonic(), said_after
    while True:
        waited = time.monotonic() - begin
        yield waited if waited >= due else None
        if waited >= due:
            due = waited + _SAID_EVERY
        time.sleep(_REMOTE_POLL if files.is_remote(target) else _POLL)


def _sign_of_life(target: files.Path) -> object:
    """Something that changes while the store is being built. Compared with itself, so clocks need not agree."""
    building = building_directory(target)
    with contextlib.suppress(Exception):
        return (building / _LIFE).read_text() if files.is_remote(target) else os.stat(building).st_mtime_ns
    return None
