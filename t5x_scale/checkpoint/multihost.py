"""Decisions that all processes of a run must take alike, although each reads the storage for itself."""

from __future__ import annotations

import itertools

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from t5x_scale.checkpoint.layout import DamagedError
from t5x_scale.core.distributed import wait_for_all
from t5x_scale.core.errors import StillAwayError, UnavailableError, UserError, first_line

# Newest steps that process 0 tells the others about; a collective needs a fixed size.
MAX_STEPS = 1024
_PREFIX = "t5x_scale"
# Errors that all processes of a run can have alike, from the least to the worst.
_KINDS = (DamagedError, UnavailableError, StillAwayError, UserError)
_OTHER = len(_KINDS) + 1
_TEXT_BYTES = 1 << 14
_numbers = itertools.count()


def is_primary() -> bool:
    """Whether this process is the one that renames and deletes."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Whether this process is the whole run."""
    return jax.process_count() == 1


def all_agree(ok: bool) -> bool:
    """Whether `ok` holds on every process. All processes must call it."""
    if is_alone():
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


def share_error(error: Exception | None) -> Exception | None:
    """The worst error of all processes, in the same words in all of them; None where none has one. All must call it.

    Damage is the least, then storage that is away, then what somebody has to mend. An error of another kind stays what
    it is where it was raised, and is a `UserError` in the other processes.
    """
    if is_alone():
        return error
    own = 0 if error is None else _rank(error)
    ranks = np.ravel(multihost_utils.process_allgather(np.asarray(own, np.int32)))
    worst, first = int(ranks.max()), int(ranks.argmax())
    if not worst:
        return None
    text = _share_text(f"{type(error).__name__}: {first_line(error)}" if own == _OTHER else str(error), first)
    if not ranks.min():
        text += f" (process {first} of {len(ranks)})"
    if own == worst == _OTHER:
        return error
    shared = UserError(text) if worst == _OTHER else _KINDS[worst - 1](text)
    shared.__cause__ = error
    return shared


def _rank(error: Exception) -> int:
    """How bad it is, from 1, by the most special of its kinds."""
    kind = next((kind for kind in type(error).__mro__ if kind in _KINDS), None)
    return _OTHER if kind is None else _KINDS.index(kind) + 1


def _share_text(text: str, source: int) -> str:
    """The text of process `source`, cut where nobody reads on, on every process."""
    data = np.zeros(_TEXT_BYTES, np.uint8)
    encoded = text.encode("utf-8", "replace")[:_TEXT_BYTES]
    data[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    shared = np.asarray(multihost_utils.broadcast_one_to_all(data, jax.process_index() == source))
    return shared.astype(np.uint8).tobytes().rstrip(b"\0").decode("utf-8", "replace")


def share_steps(steps: list[int]) -> list[int]:
    """The list of process 0 (its newest `MAX_STEPS`), on every process: listings may race with a deletion."""
    if is_alone():
        return steps
    return _unpad(multihost_utils.broadcast_one_to_all(_pad(steps)))


def common_steps(steps: list[int]) -> list[int]:
    """Those of `steps` (the newest `MAX_STEPS`) that every process has, ascending. All processes must call it."""
    if is_alone():
        return sorted(steps)
    lists = multihost_utils.process_allgather(_pad(sorted(steps)))
    return sorted(set.intersection(*(set(_unpad(row)) for row in lists)))


def share_word(word: int) -> int:
    """The number of process 0, from 0 to below 2^62, on every process."""
    if is_alone():
        return word
    halves = np.array([word >> 31, word & 0x7FFFFFFF], np.int32)
    high, low = (int(half) for half in multihost_utils.broadcast_one_to_all(halves))
    return (high << 31) | low


def synchronise(name: str) -> None:
    """Waits until every process is here, within the time that the run allows."""
    wait_for_all(name)


def make_name(kind: str) -> str:
    """A name that nothing else of this run has, for `publish` and `meet`. All processes call it in the same order."""
    return f"{kind}_{next(_numbers)}"


def publish(key: str, value: str) -> None:
    """Tells all processes of a run something, without their devices: from any thread, at any time, once a key."""
    distributed.global_state.client.key_value_set(f"{_PREFIX}/{key}", value)


def look_up(key: str, timeout_seconds: float) -> str:
    """What was, or will be, published under a key.

    Raises:
      jax.errors.JaxRuntimeError: nothing was within the time, or the others are gone.
    """
    return distributed.global_state.client.blocking_key_value_get(f"{_PREFIX}/{key}", int(1000 * timeout_seconds))


def is_published(key: str) -> bool:
    """Whether something was published under a key, or below it, by now."""
    return bool(distributed.global_state.client.key_value_dir_get(f"{_PREFIX}/{key}"))


def forget(key: str) -> None:
    """Deletes what was published under a key or below it."""
    distributed.global_state.client.key_value_delete(f"{_PREFIX}/{key}")


def meet(name: str, timeout_seconds: float) -> None:
    """Waits for all processes from a thread that is not the loop's, without devices.

    Raises:
      jax.errors.JaxRuntimeError: not all came within the time.
    """
    distributed.global_state.client.wait_at_barrier(f"{_PREFIX}: {name}", int(1000 * timeout_seconds))


def _pad(steps: list[int]) -> np.ndarray:
    padded = np.full(MAX_STEPS, -1, np.int32)
    newest = steps[-MAX_STEPS:]
    padded[: len(newest)] = newest
    return padded


def _unpad(padded: np.ndarray) -> list[int]:
    return [int(step) for step in padded if step >= 0]
