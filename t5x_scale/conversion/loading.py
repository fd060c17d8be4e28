"""Lazy tensors straight into the shards of a run: each process reads what its devices hold, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from t5x_scale.core import trees
from t5x_scale.core.contiguous import to_contiguous
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.leaves import Leaves


def load_parameters(leaves: Leaves, abstract_params: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The parameters, placed and cast as `abstract_params` (`ShapeDtypeStruct`s with shardings) asks.

    Raises:
      UserError: naming the first parameter that is missing, unexpected or of another shape.
    """
    wanted = trees.flatten(abstract_params)
    check_shapes({path: leaf.shape for path, leaf in leaves.items()}, wanted, source)
    return trees.unflatten({path: load_array(leaves[path].array, leaf) for path, leaf in wanted.items()})


def check_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Any], source: str) -> None:
    """Compares what a checkpoint has with what the model needs, by path and shape; reads no tensor.

    Raises:
      UserError: see `load_parameters`.
    """
    for path, leaf in wanted.items():
        if path not in found:
            near = did_you_mean(path, found.keys() - wanted.keys())
            raise UserError(f"{source} has no parameter '{path}', which the model needs{near}")
        if tuple(found[path]) != tuple(leaf.shape):
            raise UserError(
                f"'{path}' has the shape {list(found[path])} in {source}, the model needs {list(leaf.shape)}"
            )
    for path in found:
        if path not in wanted:
            near = did_you_mean(path, wanted.keys() - found.keys())
            raise UserError(f"{source} has the parameter '{path}', which the model does not know{near}")


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
