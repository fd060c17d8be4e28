"""A model on its way from one form to another: lazy tensors, and what gives them their meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.leaves import Leaves, Origin
from t5x_scale.models.architecture import Architecture

# Of parameters on disk.
STORED_DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Weights:
    """What readers give, surgeries change and writers take.

    Attributes:
      leaves: the parameters by path, as in `core.trees` (`decoder/layers/mlp/wi_0/kernel`); layers are stacked along
        dimension 0, which has the axis `layers`.
      architecture: what the parameters mean; None where it is not known (an architecture this house cannot name).
      tokenizer: the files of its tokenizer by name, such as `tokenizer.model`; small, so held whole.
      moments: the parts of an optimiser's state that have one entry a parameter: `{slot: {parameter path: Leaf}}`,
        where a slot is the path of the part in the state, such as `opt_state/0/mu`.
      counters: what else is in the state of the optimiser, by path, such as `opt_state/0/count`.
      dropped: tensors of the original that are gone, by their path.
      recipe: what was done, one JSON value a step, oldest first; it goes on record with the result.
    """

    leaves: Leaves
    architecture: Architecture | None = None
    tokenizer: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    moments: Mapping[str, Leaves] = dataclasses.field(default_factory=dict)
    counters: Leaves = dataclasses.field(default_factory=dict)
    dropped: Mapping[str, Origin] = dataclasses.field(default_factory=dict)
    recipe: tuple[dict[str, Any], ...] = ()

    def replace(self, **changes: Any) -> Weights:
        """The same weights with other values for some attributes."""
        return dataclasses.replace(self, **changes)


def cast_weights(weights: Weights, dtype: str | None) -> Weights:
    """The weights with parameters in another dtype, as they are when None. Moments of an optimiser stay.

    Raises:
      UserError: an unknown dtype; or, when a leaf is read, a number that is too large for it.
    """
    if dtype is None:
        return weights
    check_choice("dtype", dtype, STORED_DTYPES)
    leaves = {
        path: dataclasses.replace(leaf, array=_cast(path, leaf.array, dtype)) for path, leaf in weights.leaves.items()
    }
    return weights.replace(leaves=leaves)


def _cast(path: str, array: LazyArray, dtype: str) -> LazyArray:
    if dtype != "float16":
        return lazy.cast(array, dtype)

    def to_half(block: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            half = block.astype(np.float16)
        if not np.array_equal(np.isfinite(half), np.isfinite(block)):
            raise UserError(f"the parameter '{path}' has numbers beyond float16's 65504; bfloat16 holds them")
        return half

    return lazy.elementwise(to_half, array, dtype=dtype)
