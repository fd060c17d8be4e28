"""Attention to some keys at a time: what is asked of each part, and how the parts are put together.

What is known of a query while only some of its keys were seen is the weighted sum of their values, the largest
logit and the sum of the weights (online softmax, Milakov and Gimelshein 2018, arXiv 1805.02867).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Small enough that adding two of them stays finite in float32.
MASKED = -1e30


class Vectors(NamedTuple):
    """A mask as vectors: query i sees key j if `first_i <= index_j <= last_i` and they share their segment.

    Attributes:
      first: int32 [B or 1, L], or None without a window.
      last: int32 [B or 1, L].
      query_segments: int32 [B, L] or None.
      index: int32 [B or 1, S]; rises along each half of S.
      key_segments: int32 [B, S] or None.
    """

    first: Any
    last: Any
    query_segments: Any
    index: Any
    key_segments: Any


class Settings(NamedTuple):
    """What is the same for all keys: the bound of the logits or None, and the size of blocks where a kernel has any."""

    soft_cap: float | None
    block: int


class Queries(NamedTuple):
    """Queries and which keys they see, as in `Vectors`; each kernel has an order of its own for the dimensions."""

    q: Any
    first: Any
    last: Any
    segments: Any


class Keys(NamedTuple):
    """Keys and values, their places and segments, in the form in which they travel from device to device."""

    k: Any
    v: Any
    index: Any
    segments: Any


class Seen(NamedTuple):
    """What the keys seen so far gave, float32: sums of values [..., H]; the largest logit and sums of weights [...]."""

    values: jax.Array
    largest: jax.Array
    weights: jax.Array


def nothing_seen(shape: tuple[int, ...]) -> Seen:
    """Where every query of `shape` [..., H] begins."""
    zeros = jnp.zeros(shape, jnp.float32)
    return Seen(zeros, jnp.full(shape[:-1], MASKED, jnp.float32), zeros[..., 0])


def merge(one: Seen, other: Seen) -> Seen:
    """What two sets of keys gave together."""
    largest = jnp.maximum(one.largest, other.largest)
    a, b = jnp.exp(one.largest - largest), jnp.exp(other.largest - largest)
    values = one.values * a[..., None] + other.values * b[..., None]
    return Seen(values, largest, one.weights * a + other.weights * b)


def finish(seen: Seen) -> tuple[jax.Array, jax.Array]:
    """The output [..., H] in float32, 0 where nothing was seen, and log Z [...]."""
    weights = jnp.where(seen.weights > 0, seen.weights, 1.0)
    return seen.values / weights[..., None], seen.largest + jnp.log(weights)
