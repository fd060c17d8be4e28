"""Values drawn to the measure of a tensor, layer by layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from t5x_scale.core import lazy
from t5x_scale.core.lazy import LazyArray, Region


def layer_statistics(array: LazyArray, max_bytes: int = 64 * 2**20) -> Callable[[int], tuple[float, float]]:
    """Mean and standard deviation of each layer, worked out when first asked for.

    Args:
      array: [layers, ...].
      max_bytes: of the parts in which a layer is read.
    """

    @functools.cache
    def measure(layer: int) -> tuple[float, float]:
        values = lazy.select(array, 0, layer)
        total = squares = 0.0
        for region in lazy.blocks(values, max_bytes):
            block = values.read(region).astype(np.float64)
            total += float(block.sum())
            squares += float(np.square(block).sum())
        mean = total / values.size
        return mean, math.sqrt(max(0.0, squares / values.size - mean**2))

    return measure


def normal_like(shape: tuple[int, ...], source: LazyArray, centred: bool, seed: int, name: str) -> LazyArray:
    """float32 normal values, each layer with the standard deviation of `source`'s, and with its mean unless `centred`.

    Args:
      shape: [layers, ...].
      source: [layers, ...].
      centred: whether the mean is 0.
      seed, name: see `lazy.normal`.
    """
    units, measure = lazy.normal(shape, np.float32, 1.0, seed, name), layer_statistics(source)

    def read(region: Region) -> np.ndarray:
        measured = np.array([measure(layer) for layer in range(region[0].start, region[0].stop)], np.float32)
        mean, stddev = measured.reshape(-1, 2).T.reshape(2, -1, *[1] * (len(shape) - 1))
        values = stddev * units.read(region)
        return values if centred else mean + values

    return lazy.LazyArray(units.shape, units.dtype, read)


def add_noise(array: LazyArray, source: LazyArray, relative: float, share: float, seed: int, name: str) -> LazyArray:
    """Normal noise of `relative` times the standard deviation of `source`'s layers, on a random share of the elements.

    Args:
      array: [layers, ...], made of `source`.
      source: [layers, ...].
      relative: size of the noise; 0 leaves the array as it is.
      share: of the elements that are changed, from 0 to 1.
      seed, name: see `lazy.normal`.
    """
    if relative == 0.0 or share == 0.0:
        return array
    noise = normal_like(array.shape, source, True, seed, f"{name}/noise")
    if share < 1.0:
        chosen = lazy.uniform(array.shape, seed, f"{name}/share")
        noise = lazy.elementwise(lambda values, chosen: values * (chosen < share), noise, chosen)
    return lazy.elementwise(lambda values, noise: values + np.float32(relative) * noise, array, noise)


def choose_neurons(shape: tuple[int, int, int], share: float, seed: int) -> np.ndarray:
    """A random share of the neurons of every expert: bool [layers, experts, neurons]."""
    chosen = np.zeros(shape, bool)
    for place in np.ndindex(*shape[:2]) if share else ():
        neurons = np.random.default_rng([seed, *place]).choice(shape[2], round(share * shape[2]), replace=False)
        chosen[place][neurons] = True
    return chosen


def spread(chosen: np.ndarray, axis: int, size: int) -> LazyArray:
    """The array with a new dimension `axis` of `size`, the same all along it."""
    return lazy.take(lazy.expand(lazy.from_array(chosen), axis), axis, [0] * size)
