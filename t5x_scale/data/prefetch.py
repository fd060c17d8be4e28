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
    def batch(self, step: int, rows: np.ndarray | slice | None = None) -> dict[str, np.ndarray]: ...


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
        rows: Callable[[int], np.ndarray | slice | None] | None = None,
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
    """A function from this host's rows of a batch (see `host_rows`) to global arrays sharded by `sharding`."""
    blocks, mine = _row_blocks(sharding)

    def make_global(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return {name: place(field) for name, field in batch.items()}

    def place(field: np.ndarray) -> jax.Array:
        height = field.shape[0] // len(mine)
        shape = (height * blocks, *field.shape[1:])

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            first = mine.index(index[0].indices(shape[0])[0] // height) * height
            return field[(slice(first, first + height), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, shard)

    return make_global


def host_rows(sharding: jax.sharding.Sharding, size: int) -> np.ndarray:
    """The rows of a global batch of `size` that this process's devices hold, int64, ascending.

    They need not lie together: meshes follow the links of a torus, and a host's chips stand where they stand. Where a
    model is split over several hosts, these hold the same rows.

    Raises:
      ValueError: the rows do not divide over the mesh.
    """
    blocks, mine = _row_blocks(sharding)
    if size % blocks:
        raise ValueError(f"{size} rows do not divide over {blocks} groups of devices")
    height = size // blocks
    return (np.asarray(mine, np.int64)[:, None] * height + np.arange(height)).reshape(-1)


def _row_blocks(sharding: jax.sharding.Sharding) -> tuple[int, list[int]]:
    """Into how many blocks of rows a batch is cut, and which of them this process's devices hold, ascending."""
    # Divides over any part of the mesh, in both dimensions.
    probe = (len(sharding.device_set),) * 2

    def starts(indices: Mapping[Any, tuple[slice, ...]]) -> list[int]:
        return sorted({index[0].indices(probe[0])[0] for index in indices.values()})

    everyone = starts(sharding.devices_indices_map(probe))
    return len(everyone), [everyone.index(start) for start in starts(sharding.addressable_devices_indices_map(probe))]
