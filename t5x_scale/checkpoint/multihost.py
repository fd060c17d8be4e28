"""Decisions that all processes of a run must take alike, although each reads the storage for itself."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5x_scale.core.distributed import wait_for_all

# Newest steps that process 0 tells the others about; a collective needs a fixed size.
MAX_STEPS = 1024


def is_primary() -> bool:
    """Whether this process is the one that renames and deletes."""
    return jax.process_index() == 0


def all_agree(ok: bool) -> bool:
    """Whether `ok` holds on every process. All processes must call it."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


def share_steps(steps: list[int]) -> list[int]:
    """The list of process 0 (its newest `MAX_STEPS`), on every process: listings may race with a deletion."""
    if jax.process_count() == 1:
        return steps
    padded = np.full(MAX_STEPS, -1, np.int32)
    newest = steps[-MAX_STEPS:]
    padded[: len(newest)] = newest
    shared = multihost_utils.broadcast_one_to_all(padded)
    return [int(step) for step in shared if step >= 0]


def synchronise(name: str) -> None:
    """Waits until every process is here, within the time that the run allows."""
    wait_for_all(name)
