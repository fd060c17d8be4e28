"""One checkpoint on its way to storage: written by Orbax in the background, whole in all processes or in none.

Several processes meet twice while they write: when all have written, and when process 0 has committed. Orbax leaves
the others waiting for a process that failed until a limit of twenty minutes. Here a process that failed says so where
all can see it and comes to the meeting that it would have missed, and so all of them give up this checkpoint at once.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src.checkpointers import async_checkpointer as orbax_async
from orbax.checkpoint._src.futures import future as orbax_futures
from orbax.checkpoint._src.futures import signaling_client as orbax_signals

from t5x_scale.checkpoint import integrity, layout, multihost
from t5x_scale.checkpoint.layout import LOGGER, Document, LeafRecord
from t5x_scale.core import files, trees
from t5x_scale.core.environment import describe_environment
from t5x_scale.core.errors import first_line
from t5x_scale.core.storage_errors import describe_write

MAX_CHUNK_BYTES = 1 << 25
MIN_CHUNK_BYTES = 1 << 20
BEGIN, END = "begin", "end"
# Orbax's names of the two meetings.
_PHASES = ("async_write_complete", "async_commit_complete")
_ORBAX = "/orbax/checkpoint/"
# Orbax measures by the wall clock, so that a clock which jumps a day would fail a save; a save that hangs is the
# watchdog's business. Its waits whose limit cannot be set are given a clock that does not jump.
_TIMEOUT_SECONDS = 10 * 365 * 86400
_STEADY_CLOCK = types.SimpleNamespace(**vars(time) | {"time": time.monotonic})

Listener = Callable[[int, str], None]


class GivenUpError(Exception):
    """Another process could not write its part."""


class Saver:
    """Writes checkpoints, one at a time. Every process makes one and calls the same methods in the same order.

    Args:
      listener: called with the step and `"begin"` or `"end"`, when its writing in the background begins and when it
        has ended, well or not; the end from a thread of its own.
      on_commit: called with the step, and a name that only this save has, once it is committed: from the same thread,
        in all processes.
      on_failure: called with the step, and the reason, of a save that failed; likewise.
    """

    def __init__(
        self,
        listener: Listener | None = None,
        on_commit: Callable[[int, str], None] | None = None,
        on_failure: Callable[[int, str], None] | None = None,
    ):
        self.listener, self._on_commit, self._on_failure = listener, on_commit, on_failure
        self._checkpointer: ocp.AsyncCheckpointer | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._name, self._met = "", 0

    def start(self, path: files.Path, arrays: Mapping[str, Any], document: Mapping[str, Any]) -> None:
        """Begins to write; returns once the arrays may be donated. What fails is told by `finish`."""
        self._error, self._met = None, 0
        if not multihost.is_alone():
            self._name = multihost.make_name("save")
        step = int(path.name)
        self._tell(step, BEGIN)
        try:
            self._save(path, arrays, document)
        except Exception as error:
            self._error = error
        self._thread = threading.Thread(target=self._end, args=(path, step), name="finish_checkpoint")
        self._thread.start()

    def finish(self) -> Exception | None:
        """Waits for the writing. All processes get an error, or none does; None too where nothing is being written."""
        if self._thread is None:
            return None
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if multihost.all_agree(error is None):
            return None
        return error or GivenUpError("another process could not write its part")

    def close(self) -> None:
        """Releases threads."""
        if self._thread is not None:
            self._thread.join()
        if self._checkpointer is not None:
            with contextlib.suppress(Exception):  # Of a save that failed: told already.
                self._checkpointer.close()
            self._checkpointer = None

    def _save(self, path: files.Path, arrays: Mapping[str, Any], document: Mapping[str, Any]) -> None:
        if self._checkpointer is None:
            logging.getLogger("absl").addFilter(_is_wanted)
            orbax_async.time = orbax_futures.time = orbax_signals.time = _STEADY_CLOCK
            options = ocp.options.AsyncOptions(barrier_sync_fn=self._meet, timeout_secs=_TIMEOUT_SECONDS)
            self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)
        nested = trees.unflatten(arrays)
        items = {
            layout.STATE_ITEM: ocp.args.PyTreeSave(nested, jax.tree.map(_choose_chunks, nested)),
            layout.METADATA_ITEM: ocp.args.JsonSave(document),
        }
        self._checkpointer.save(path, args=ocp.args.Composite(**items))

    def _end(self, path: files.Path, step: int) -> None:
        try:
            if self._error is None:
                self._checkpointer.wait_until_finished()
        except Exception as error:
            self._error = error
        if self._error is not None:
            LOGGER.error(
                "the checkpoint of step %d in %s is NOT saved: %s", step, path.parent, describe_write(self._error)
            )
            if self._on_failure is not None:
                self._on_failure(step, describe_write(self._error))
            self._give_up()
            _let_go()
        self._tell(step, END)
        if self._error is None and self._on_commit is not None:
            self._on_commit(step, self._name)

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """What Orbax calls to wait for the other processes."""
        self._met = 1 + next(index for index, phase in enumerate(_PHASES) if phase in key)
        multihost.meet(f"{self._name}/{self._met}", timeout_ms / 1000)
        if multihost.is_published(f"{self._name}/failed"):
            raise GivenUpError("another process could not write its part")

    def _give_up(self) -> None:
        if multihost.is_alone() or _has_cause(self._error, GivenUpError) or self._met == len(_PHASES):
            return
        try:
            multihost.publish(f"{self._name}/failed/{jax.process_index()}", "")
            multihost.meet(f"{self._name}/{self._met + 1}", _TIMEOUT_SECONDS)
        except Exception as error:
            LOGGER.warning("the other processes could not be told: %s", first_line(error))

    def _tell(self, step: int, edge: str) -> None:
        if self.listener is not None:
            self.listener(step, edge)


def _let_go() -> None:
    """Ends Orbax's threads of a save that failed: they would wait for its directory, holding its arrays, for minutes.

    A process does not end before they do. There is one save at a time, so that all of them are of this one.
    """
    # What they would have done is dropped, and that is no news.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    for thread in threading.enumerate():
        if isinstance(thread, orbax_futures._SignalingThread):
            thread.cancel()
            orbax_futures.set_signals(thread._receive_signals, operation_id=thread._operation_id)


def make_document(step: int, leaves: Mapping[str, Any], metadata: Mapping[str, Any]) -> Document:
    """The document saved with a step: fingerprints are computed here, on the devices that hold the leaves."""
    fingerprints = integrity.fingerprint_leaves(leaves)
    records = {}
    for path, leaf in leaves.items():
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        records[path] = LeafRecord(tuple(leaf.shape), str(leaf.dtype), integrity.to_text(fingerprints[path]))
    return Document(step, records, {"environment": describe_environment(), **metadata})


def to_arrays(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves as Orbax takes them: arrays of devices, or of numpy."""
    return {path: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for path, leaf in leaves.items()}


def _choose_chunks(array: jax.Array | np.ndarray) -> ocp.SaveArgs:
    """How an array, or each shard of it, is cut in storage, so that a part of it can be read without the rest.

    A stack of three or more dimensions is cut into its layers first, where these are large enough: conversions go
    through a model layer by layer. Left to itself Orbax writes a shard as one chunk, whatever its size.
    """
    shape = array.sharding.shard_shape(array.shape) if isinstance(array, jax.Array) else array.shape
    layer_bytes = math.prod(shape[1:]) * array.dtype.itemsize
    is_stack = len(shape) > 2 and layer_bytes >= MIN_CHUNK_BYTES
    return ocp.SaveArgs(chunk_byte_size=MAX_CHUNK_BYTES, shard_axes=(0,) if is_stack else ())


def _has_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error is not None


def _is_wanted(record: logging.LogRecord) -> bool:
    """Whether a record is not one of Orbax's pages about a failure, which is told in a line here."""
    return not (record.levelno >= logging.ERROR and _ORBAX in record.pathname.replace(os.sep, "/"))
