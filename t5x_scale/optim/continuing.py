"""The parts of an optimiser's state, told apart for a run that goes on with another's."""

from __future__ import annotations

from typing import Any

import jax
import optax

from t5x_scale.optim.transforms import CountState

# What these count is the progress of a schedule; every other count belongs to a moment.
_CLOCKS = (optax.ScaleByScheduleState, CountState)


def clock_mask(state: Any) -> Any:
    """A tree like `state` that holds True where a leaf is the position of a schedule, and False elsewhere.

    A run that takes over the moments of another begins its own schedule, so these start at 0 again.
    """

    def visit(node: Any) -> Any:
        return jax.tree.map(lambda _: True, node) if _is_clock(node) else False

    return jax.tree.map(visit, state, is_leaf=_is_clock)


def _is_clock(node: Any) -> bool:
    return isinstance(node, _CLOCKS)
