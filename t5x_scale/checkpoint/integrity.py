"""Fingerprints: one number per leaf that tells whether its bits are the bits that were saved.

A fingerprint is 64 bits: the sum over all elements of a mixed (bits, position) word, in two lanes of uint32.
Sums of integers do not depend on their order, so the number is the same on every mesh, computed where the
shards lie, with one tiny result fetched. Every element is mixed with its position before the sum by a
bijection, so one flipped bit always changes the number, and two swapped elements change it but for chance
(2^-64). The storage format carries no checksum of its own: a flipped byte on a disk restores silently.

The position is the index in row-major order modulo 2^32; larger leaves wrap, which weakens only the
detection of elements swapped over exactly that distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from t5x_scale.checkpoint.layout import flatten_leaves

# Odd constants with well-spread bits: the golden ratio, and Murmur3's finaliser.
_POSITION = 0x9E3779B9
_MIX_1 = 0x85EBCA6B
_MIX_2 = 0xC2B2AE35
_LANE = 0xFFFFFFFF
# Elements that the numpy twin handles at a time: its temporaries stay in the cache (2 GB/s of float32 a core; a
# program of XLA's CPU backend makes 2.5, but there is none where JAX_PLATFORMS names an accelerator only).
_CHUNK = 1 << 16


def fingerprints(tree: Any) -> dict[str, int]:
    """The fingerprint of every leaf of a pytree, keyed by leaf path (`"params/decoder/..."`).

    Arrays are fingerprinted on their devices, numpy arrays and Python scalars on the host. Every process of a
    run must call this with the same tree; each receives every fingerprint.

    Raises:
      TypeError: a leaf has a dtype without a defined bit pattern.
    """
    return fingerprint_leaves(flatten_leaves(tree))


def fingerprint_leaves(leaves: Mapping[str, Any]) -> dict[str, int]:
    """`fingerprints` of leaves that are flat already, keyed by path."""
    result: dict[str, int] = {}
    groups: dict[Any, list[str]] = {}
    for path, leaf in leaves.items():
        if isinstance(leaf, jax.Array):
            # One program per set of devices: a program cannot span two of them.
            groups.setdefault(frozenset(leaf.sharding.device_set), []).append(path)
        else:
            result[path] = fingerprint_array(np.asarray(leaf))
    pending = [(paths, _fingerprint_all([leaves[path] for path in paths])) for paths in groups.values()]
    for paths, lanes in pending:
        for path, (low, high) in zip(paths, np.asarray(lanes).tolist(), strict=True):
            result[path] = (high << 32) | low
    return {path: result[path] for path in leaves}


def fingerprint_array(array: np.ndarray) -> int:
    """The fingerprint of one host array: the same number `fingerprints` gives for it on a device."""
    array = np.asarray(array)
    return fingerprint_region(array, [slice(0, size) for size in array.shape], array.shape)


def fingerprint_region(block: np.ndarray, region: Sequence[slice], shape: Sequence[int]) -> int:
    """What one box of an array adds to the array's fingerprint: the parts of any tiling `combine` to the whole.

    Args:
      block: the elements of the box.
      region: where the box lies, one slice with start and stop a dimension.
      shape: of the whole array.
    """
    if not block.size:
        return 0
    words = _host_words(block)
    starts, shape = [part.start for part in region] or [0], list(shape) or [1]
    if words.ndim > len(shape):
        starts, shape = [*starts, 0], [*shape, words.shape[-1]]
    runs, positions = _split_into_runs(words, starts, shape)
    width = min(runs.shape[1], _CHUNK)
    height = _CHUNK // width
    table = np.arange(width, dtype=np.uint32) * np.uint32(_POSITION)
    scratch = np.empty((2, height * width), np.uint32)
    parts = []
    for column in range(0, runs.shape[1], width):
        offsets = (positions + np.uint32(column & _LANE)) * np.uint32(_POSITION)
        for row in range(0, runs.shape[0], height):
            chunk = runs[row : row + height, column : column + width]
            parts.append(_sum_lanes(chunk, offsets[row : row + height, None], table, scratch))
    return combine(parts)


def combine(parts: Iterable[int]) -> int:
    """The fingerprint of an array from those of boxes that tile it, in any order."""
    low = high = 0
    for part in parts:
        low += part & _LANE
        high += part >> 32
    return ((high & _LANE) << 32) | (low & _LANE)


def find_differences(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """The sorted paths whose fingerprints differ, or that only one side has."""
    return sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))


def to_text(fingerprint: int) -> str:
    """A fingerprint as 16 hexadecimal digits: JSON numbers do not hold 64 bits everywhere."""
    return f"{fingerprint:016x}"


def from_text(text: str) -> int:
    """The inverse of `to_text`.

    Raises:
      ValueError: `text` is not 16 hexadecimal digits.
    """
    if len(text) != 16:
        raise ValueError(f"{text!r} is not a fingerprint of 16 hexadecimal digits")
    return int(text, 16)


@jax.jit
def _fingerprint_all(leaves: Sequence[jax.Array]) -> jax.Array:
    """uint32 [number of leaves, 2]: the low and the high lane of each leaf."""
    return jnp.stack([fingerprint_lanes(leaf) for leaf in leaves])


def fingerprint_lanes(leaf: jax.Array) -> jax.Array:
    """The fingerprint of an array inside a compiled program: uint32 [2], the low and the high lane."""
    words = _device_words(leaf)
    position = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        # Strides and products wrap modulo 2^32, as the position does.
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % (1 << 32))
        stride *= words.shape[axis]
    lanes = _mix(words, position, jnp.uint32)
    # One reduction for both lanes: on a CPU it is ten times as fast as two sums.
    zeros = (jnp.uint32(0), jnp.uint32(0))
    return jnp.stack(jax.lax.reduce(lanes, zeros, _add_lanes, tuple(range(words.ndim))))


def fingerprint_shards(leaves: Sequence[jax.Array], specs: Sequence[PartitionSpec], mesh: Mesh) -> jax.Array:
    """Inside a compiled program: what each device holds, by itself.

    Args:
      leaves: arrays.
      specs: how each lies on the mesh.
      mesh: the mesh.

    Returns:
      uint32 [devices of the mesh in its order, leaves, 2]. Copies of the same shard have the same fingerprint.
    """

    def own(*shards: jax.Array) -> jax.Array:
        return jnp.stack([fingerprint_lanes(shard) for shard in shards])[None]

    everywhere = PartitionSpec(mesh.axis_names)
    return jax.shard_map(own, mesh=mesh, in_specs=tuple(specs), out_specs=everywhere, check_vma=False)(*leaves)


def _add_lanes(left: tuple[Any, Any], right: tuple[Any, Any]) -> tuple[Any, Any]:
    return left[0] + right[0], left[1] + right[1]


def _mix(words: Any, position: Any, uint32: Any) -> tuple[Any, Any]:
    """Two bijections of `words` for each position. `_sum_lanes` is the same on the host."""
    x = words + position * uint32(_POSITION)
    x = (x ^ (x >> uint32(16))) * uint32(_MIX_1)
    x = (x ^ (x >> uint32(13))) * uint32(_MIX_2)
    first = x ^ (x >> uint32(16))
    second = first * uint32(_MIX_1)
    return first, second ^ (second >> uint32(15))


def _sum_lanes(words: np.ndarray, offsets: np.ndarray, table: np.ndarray, scratch: np.ndarray) -> int:
    """`_mix` and the sum of both lanes for words [h, w] at positions whose multiples are offsets [h, 1] + table."""
    x, y = (buffer[: words.size].reshape(words.shape) for buffer in scratch)
    np.copyto(x, words)
    x += table[: words.shape[1]]
    x += offsets
    for shift, factor in ((16, _MIX_1), (13, _MIX_2), (16, None)):
        np.right_shift(x, shift, out=y)
        x ^= y
        if factor:
            x *= np.uint32(factor)
    low = int(np.add.reduce(x, axis=None, dtype=np.uint32))
    x *= np.uint32(_MIX_1)
    np.right_shift(x, 15, out=y)
    x ^= y
    return (int(np.add.reduce(x, axis=None, dtype=np.uint32)) << 32) | low


def _split_into_runs(words: np.ndarray, starts: Sequence[int], shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The box as [runs, length], each run contiguous in the whole array, and the position of each run's first word."""
    axis = words.ndim - 1
    while axis > 0 and words.shape[axis] == shape[axis]:
        axis -= 1
    strides = [math.prod(shape[dimension + 1 :]) & _LANE for dimension in range(words.ndim)]
    positions = np.array([starts[axis] * strides[axis] & _LANE], np.uint32)
    for dimension in range(axis):
        indices = np.arange(starts[dimension], starts[dimension] + words.shape[dimension], dtype=np.uint64)
        steps = (indices * np.uint64(strides[dimension])).astype(np.uint32)
        positions = np.add.outer(positions, steps).reshape(-1)
    return words.reshape(len(positions), -1), positions


def _device_words(leaf: jax.Array) -> jax.Array:
    """The bits of each element as uint32; elements of 8 bytes get a trailing axis of two words, low first."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    bits = jax.dtypes.itemsize_bits(leaf.dtype)
    if bits not in (8, 16, 32, 64) or jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise TypeError(f"no fingerprint for the dtype {leaf.dtype}")
    if bits >= 32:
        return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, f"uint{bits}").astype(jnp.uint32)


def _host_words(array: np.ndarray) -> np.ndarray:
    """The bits of each element as unsigned integers; elements of 8 bytes get a trailing axis of two, low first."""
    if array.dtype == np.bool_:
        return np.ascontiguousarray(array).view(np.uint8)
    if array.dtype.kind in "OSUMmc" or array.dtype.itemsize not in (1, 2, 4, 8):
        raise TypeError(f"no fingerprint for the dtype {array.dtype}")
    array = np.ascontiguousarray(array)  # A scalar becomes an array of one element.
    if array.dtype.itemsize == 8:
        return array.view(np.uint32).reshape(*array.shape, 2)
    return array.view(f"uint{8 * array.dtype.itemsize}")
