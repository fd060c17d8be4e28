"""The state of a run as one plain pytree."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
      step: int32 scalar, the number of finished steps; also the index of the next batch's step.
      params: nested dicts of arrays; the paths of the leaves are the names of the parameters.
      opt_state: what the optimiser keeps.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
