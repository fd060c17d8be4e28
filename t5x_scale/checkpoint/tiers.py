"""Which checkpoint a run goes on from: the newest of both tiers that verifies, MODEL_DIR's own and the machines'."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from t5x_scale.checkpoint import layout, restore
from t5x_scale.checkpoint.layout import LOGGER, DamagedError, Document
from t5x_scale.checkpoint.local_tier import LocalTier
from t5x_scale.checkpoint.together import list_together
from t5x_scale.core import files
from t5x_scale.core.errors import UserError


class Found(NamedTuple):
    """A step that verifies.

    Attributes:
      document: its metadata.
      arrays: its leaves by path.
      is_from_machines: whether they were read from the local tier.
      is_in_directory: whether the step stands in MODEL_DIR too.
    """

    document: Document
    arrays: dict[str, jax.Array]
    is_from_machines: bool
    is_in_directory: bool


def find_newest(directory: files.Path, local: LocalTier | None) -> int | None:
    """The newest committed step of either tier, or None. All processes must call it."""
    steps = local.steps() if local else []
    return max((*list_together(directory), *steps), default=None)


def restore_newest(
    directory: files.Path,
    local: LocalTier | None,
    wanted: Mapping[str, Any],
    step: int | None = None,
    on_damage: Callable[[int, str], None] | None = None,
) -> Found:
    """Restores the newest step of either tier that verifies, or exactly `step` of `directory`.

    Args:
      directory: `MODEL_DIR/checkpoints`.
      local: the tier of the machines, if there is one.
      wanted: `jax.ShapeDtypeStruct` with shardings, by leaf path.
      step: the one step wanted; None for the newest that can be trusted.
      on_damage: is told of each step that is not used, and why.

    Raises:
      UserError: there is none, or none verifies; a leaf does not fit, or the storage does not answer.
    """
    steps = list_together(directory)
    if not steps:
        raise UserError(f"{directory} holds no finished checkpoint")
    if step is not None and step not in steps:
        raise UserError(f"{directory} has no checkpoint of step {step}; it has {_render_steps(steps[::-1])}")
    at_machines = local.steps() if local and step is None else []

    def read(candidate: int) -> Found:
        if candidate in at_machines:
            try:
                return Found(*local.restore(candidate, wanted), True, candidate in steps)
            except DamagedError as error:
                if candidate not in steps:
                    raise DamagedError(f"of the local copies {error}") from error
                LOGGER.warning("the local copies of step %d are NOT used: %s", candidate, error)
        return Found(*_read(directory, candidate, wanted), False, True)

    candidates = sorted({*steps, *at_machines}, reverse=True) if step is None else [step]
    return restore.first_that_verifies(directory, candidates, read, on_damage)[1]


def _read(directory: files.Path, step: int, wanted: Mapping[str, Any]) -> tuple[Document, dict[str, jax.Array]]:
    path = layout.step_directory(directory, step)
    document = restore.read_document(path)
    layout.check_leaves(document, wanted, str(path))
    return document, restore.read_verified_leaves(functools.partial(restore.read_leaves, path), document, wanted)


def _render_steps(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:10])) + (", ..." if len(steps) > 10 else "")
