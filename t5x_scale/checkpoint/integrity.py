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

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_scale.checkpoint.layout import flatten_leaves

# Odd constants with well-spread bits: the golden ratio, and Murmur3's finaliser.
_POSITION = 0x9E3779B9
_MIX_1 = 0x85EBCA6B
_MIX_2 = 0xC2B2AE35
# Elements that the numpy twin handles at a time: its temporaries stay in the cache.
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
    words = _host_words(np.asarray(array))
    low = high = np.uint32(0)
    for start in range(0, words.size, _CHUNK):
        chunk = words[start : start + _CHUNK].astype(np.uint32)
        position = np.arange(start, start + chunk.size, dtype=np.uint64).astype(np.uint32)
        first, second = _mix(chunk, position, np.uint32)
        # Array sums wrap modulo 2^32, which is what is wanted; scalars would warn.
        low = np.sum(np.append(first, low), dtype=np.uint32)
        high = np.sum(np.append(second, high), dtype=np.uint32)
    return (int(high) << 32) | int(low)


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
    return jnp.stack([_fingerprint_leaf(leaf) for leaf in leaves])


def _fingerprint_leaf(leaf: jax.Array) -> jax.Array:
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


def _add_lanes(left: tuple[Any, Any], right: tuple[Any, Any]) -> tuple[Any, Any]:
    return left[0] + right[0], left[1] + right[1]


def _mix(words: Any, position: Any, uint32: Any) -> tuple[Any, Any]:
    """Two bijections of `words` for each position; written once for numpy and jax."""
    x = words + position * uint32(_POSITION)
    x = (x ^ (x >> uint32(16))) * uint32(_MIX_1)
    x = (x ^ (x >> uint32(13))) * uint32(_MIX_2)
    first = x ^ (x >> uint32(16))
    second = first * uint32(_MIX_1)
    return first, second ^ (second >> uint32(15))


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
    """The bits of each element as a flat array of unsigned integers, low words first."""
    if array.dtype == np.bool_:
        return array.reshape(-1).view(np.uint8)
    if array.dtype.kind in "OSUMmc" or array.dtype.itemsize not in (1, 2, 4, 8):
        raise TypeError(f"no fingerprint for the dtype {array.dtype}")
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint32) if array.dtype.itemsize == 8 else flat.view(f"uint{8 * array.dtype.itemsize}")
