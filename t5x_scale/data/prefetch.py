"""Batches made ahead of time in a thread, and put on the devices as global arrays."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np


class _Source(Protocol):
    def batch(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]: ...


class Prefetcher:
    """Iterates over (step, global batch) from a step on, in order, without end.

    A thread stays `depth` batches ahead. An exception in it reaches the consumer at the step where it happened.

    Attributes:
      wait_seconds: what the last `next` waited for its batch.
      total_wait_seconds: the sum of all waits.
    """

    def __init__(
        self,
        source: _Source,
        start_step: int,
        make_global: Callable[[Mapping[str, np.ndarray]], Any],
        depth: int = 2,
        rows: Callable[[int], slice | None] | None = None,
    ):
        """Args:
        source: gives this host's rows of any step.
        start_step: the first step.
        make_global: from this host's rows to what the step takes, such as `make_global_batch(sharding)`.
        depth: batches held ready.
        rows: rows of a step's global batch that this host needs; an equal share, in order of hosts, when None.
        """
        self.wait_seconds = 0.0
        self.total_wait_seconds = 0.0
        self._source, self._make_global, self._rows = source, make_global, rows
        self._queue: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue(maxsize=max(depth, 1))
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(start_step,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> tuple[int, Any]:
        if self._failure is not None:
            raise self._failure
        if self._stop.is_set():
            raise StopIteration
        begin = time.perf_counter()
        step, batch, self._failure = self._queue.get()
        self.wait_seconds = time.perf_counter() - begin
        self.total_wait_seconds += self.wait_seconds
        if self._failure is not None:
            raise self._failure
        return step, batch

    def close(self) -> None:
        """Stops the thread and waits for it. Safe to call twice."""
        self._stop.set()
        while self._thread.is_alive():
            # The thread may be waiting for room.
            self._drain()
            self._thread.join(timeout=0.01)
        self._drain()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self, step: int) -> None:
        while not self._stop.is_set():
            try:
                rows = self._rows(step) if self._rows else None
                item = (step, self._make_global(self._source.batch(step, rows)), None)
            except BaseException as error:
                item = (step, None, error)
            self._queue.put(item)
            if item[2] is not None:
                return
            step += 1

    def _drain(self) -> None:
        try:
            while True:
                self._queue.get_nowait()
        except queue.Empty:
            pass


def make_global_batch(sharding: jax.sharding.Sharding) -> Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]:
    """A function from this host's rows of a batch to global arrays sharded by `sharding`.

    The rows must be `host_rows(sharding, size)`, which for a batch axis split evenly among hosts are this host's
    equal share in order.
    """

    def make_global(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return {name: jax.make_array_from_process_local_data(sharding, field) for name, field in batch.items()}

    return make_global


def host_rows(sharding: jax.sharding.Sharding, size: int, length: int = 1) -> slice:
    """The rows of a global batch [size, length] that this process's devices hold, as one slice.

    Where a model is split over several hosts, they need the same rows; where the batch is, each needs its own.

    Raises:
      ValueError: the rows of this process do not lie together.
    """
    indices = sharding.addressable_devices_indices_map((size, length)).values()
    bounds = {index[0].indices(size)[:2] for index in indices}
    start, stop = min(first for first, _ in bounds), max(end for _, end in bounds)
    if sum(end - first for first, end in bounds) != stop - start:
        raise ValueError(f"the rows of this process, {sorted(bounds)}, do not lie together")
    return slice(start, stop)
