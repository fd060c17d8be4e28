"""Lazy tensors straight into the shards of a run: each process reads what its devices hold, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from t5x_scale.core import trees
from t5x_scale.core.contiguous import to_contiguous
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.leaves import Leaves


def load_parameters(leaves: Leaves, abstract_params: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The parameters, placed and cast as `abstract_params` (`ShapeDtypeStruct`s with shardings) asks.

    Raises:
      UserError: naming the first parameter that is missing, unexpected or of another shape.
    """
    wanted = trees.flatten(abstract_params)
    trees.check_shapes(leaves, wanted, source)
    return trees.unflatten({path: load_array(leaves[path].array, leaf) for path, leaf in wanted.items()})


def load_array(array: LazyArray, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """One tensor in its shards; devices that hold the same part share one read."""
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        box = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, wanted.shape, strict=True))
        key = tuple((part.start, part.stop) for part in box)
        if key not in parts:
            parts[key] = to_contiguous(array.read(box)).astype(wanted.dtype, copy=False)
        return parts[key]

    sharding = wanted.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.make_array_from_callback(tuple(wanted.shape), sharding, read)
