"""Work by threads, a few pieces at a time: memory holds what is under way and no more."""

from __future__ import annotations

import collections
import concurrent.futures
import ctypes
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_M_ARENA_MAX = -8

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_cores() -> int:
    """Cores that this process may use; where the system does not say, those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Threads that copy and wait for the disk in turn: one more than the cores, and few, since each holds a block.
WORKERS = min(4, count_cores() + 1)


@functools.cache
def share_freed_memory() -> None:
    """Has glibc keep freed memory in two pools for all threads: one for each thread holds a block or two in each."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # Other C libraries have none.
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def map_bounded(function: Callable[[Item], Result], items: Iterable[Item], workers: int = WORKERS) -> Iterator[Result]:
    """`function` of each item, in order, by threads; no more than `2 * workers` items are drawn ahead of the results.

    The first error stops what has not begun and is raised once what has begun has ended. Whoever may stop drawing
    results early closes the iterator (`contextlib.closing`).
    """
    share_freed_memory()
    pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
