"""Attention of the queries to the keys that one device holds at a time, tile by tile.

What is known of a query while only some of its keys were seen is the weighted sum of their values, the largest
logit and the sum of the weights (online softmax, Milakov and Gimelshein 2018). Arrays come cut into tiles along the
length, tiles first, and no more scores exist at once than those of one tile of queries with one of keys. A pair of
tiles whose indices or segments never meet is skipped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Small enough that adding two of them stays finite in float32.
_MASKED = -1e30
# What a tile is to be no smaller than, and no larger than where the length divides so.
_SMALLEST, _LARGEST = 128, 512

# Products of [B, K, rows, H] by head: with the keys, with the values, and over the rows.
_WITH_KEYS = (((3,), (3,)), ((0, 1), (0, 1)))
_WITH_VALUES = (((3,), (2,)), ((0, 1), (0, 1)))
_OVER_ROWS = (((2,), (2,)), ((0, 1), (0, 1)))


class Queries(NamedTuple):
    """Queries and which keys they see: those with `first <= index <= last` and their own segment.

    Attributes:
      q: [B, K, G, L, H], scaled; query head `g` of kv head `k`.
      first: int32 [B or 1, L], or None without a window.
      last: int32 [B or 1, L].
      segments: int32 [B, L] or None.
    """

    q: Any
    first: Any
    last: Any
    segments: Any


class Keys(NamedTuple):
    """Keys and values [B, K, S, H], their places int32 [B or 1, S] and segments [B, S] or None."""

    k: Any
    v: Any
    index: Any
    segments: Any


class Seen(NamedTuple):
    """What the keys seen so far gave, float32: sums of values [B, K, G, L, H]; largest logit, weights [B, K, G, L]."""

    values: Any
    largest: Any
    weights: Any


class Saved(NamedTuple):
    """What the backward pass knows: the gradient of the output, log Z, and their product's mean [B, K, G, L]."""

    d_out: Any
    log_z: Any
    mean: Any


# The dimension of each array that is the length.
QUERIES, KEYS, SEEN, SAVED = Queries(3, 1, 1, 1), Keys(2, 2, 1, 1), Seen(3, 3, 3), Saved(3, 3, 3)


def tile_length(length: int) -> int:
    """How long tiles are. Two make up `length` if it is even: the halves of the zigzag order are not alike."""
    half = length // 2 if length % 2 == 0 else length
    divisors = [size for size in range(1, half + 1) if half % size == 0]
    fitting = [size for size in divisors if _SMALLEST <= size <= _LARGEST]
    return max(fitting) if fitting else min(size for size in divisors if size >= min(_SMALLEST, half))


def cut(arrays: Any, lengths: Any, tile: int) -> Any:
    """[..., L, ...] to [L / tile, ..., tile, ...], `lengths` telling the dimension of each array."""

    def one(x: jax.Array, axis: int) -> jax.Array:
        x = x.reshape(*x.shape[:axis], x.shape[axis] // tile, tile, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    return type(lengths)(*(None if x is None else one(x, axis) for x, axis in zip(arrays, lengths, strict=True)))


def join(x: jax.Array, axis: int) -> jax.Array:
    """The inverse of `cut` for one array."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def nothing_seen(queries: Queries) -> Seen:
    """Where every query begins; arrays in tiles."""
    rows = queries.q.shape[:-1]
    zeros = jnp.zeros(rows, jnp.float32)
    return Seen(jnp.zeros(queries.q.shape, jnp.float32), jnp.full(rows, _MASKED, jnp.float32), zeros)


def attend(soft_cap: float | None, queries: Queries, keys: Keys, seen: Seen) -> Seen:
    """Adds what the queries see of these keys; all in tiles."""
    live = _live(queries, keys)

    def row(_: None, own: Any) -> tuple[None, Seen]:
        queries, seen, live = own

        def column(seen: Seen, own: Any) -> tuple[Seen, None]:
            keys, live = own
            return jax.lax.cond(live, lambda: _add(soft_cap, queries, keys, seen), lambda: seen), None

        return None, jax.lax.scan(column, seen, (keys, live))[0]

    return jax.lax.cond(jnp.any(live), lambda: jax.lax.scan(row, None, (queries, seen, live))[1], lambda: seen)


def attend_backward(
    soft_cap: float | None, queries: Queries, saved: Saved, keys: Keys, d_q: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Adds to the gradient of the queries, and makes those of these keys and values; all in tiles, float32."""
    live = _live(queries, keys)
    zeros = (jnp.zeros(keys.k.shape, jnp.float32), jnp.zeros(keys.v.shape, jnp.float32))

    def row(d_kv: Any, own: Any) -> tuple[Any, jax.Array]:
        queries, saved, d_q, live = own

        def column(d_q: jax.Array, own: Any) -> tuple[jax.Array, Any]:
            keys, d_kv, live = own
            return jax.lax.cond(
                live,
                lambda: _add_gradients(soft_cap, queries, saved, keys, d_q, d_kv),
                lambda: (d_q, d_kv),
            )

        d_q, d_kv = jax.lax.scan(column, d_q, (keys, d_kv, live))
        return d_kv, d_q

    def all_rows() -> Any:
        d_kv, d_rows = jax.lax.scan(row, zeros, (queries, saved, d_q, live))
        return d_rows, d_kv

    return jax.lax.cond(jnp.any(live), all_rows, lambda: (d_q, zeros))


def _add(soft_cap: float | None, queries: Queries, keys: Keys, seen: Seen) -> Seen:
    logits, allowed, _ = _logits(soft_cap, queries, keys)
    largest = jnp.maximum(seen.largest, jnp.max(logits, axis=-1))
    # A query that has seen nothing yet would take a masked logit for its largest.
    weights = jnp.where(allowed, jnp.exp(logits - largest[..., None]), 0.0)
    fading = jnp.exp(seen.largest - largest)
    values = _by_head(_dot(_rows(weights).astype(keys.v.dtype), keys.v, _WITH_VALUES), largest.shape)
    return Seen(
        values=seen.values * fading[..., None] + values,
        largest=largest,
        weights=seen.weights * fading + jnp.sum(weights, axis=-1),
    )


def _add_gradients(soft_cap: float | None, queries: Queries, saved: Saved, keys: Keys, d_q: jax.Array, d_kv: Any):
    logits, allowed, slope = _logits(soft_cap, queries, keys)
    weights = jnp.where(allowed, jnp.exp(logits - saved.log_z[..., None]), 0.0)
    d_out = _rows(saved.d_out)
    d_v = _dot(_rows(weights).astype(keys.v.dtype), d_out, _OVER_ROWS)
    d_weights = _by_head(_dot(d_out, keys.v, _WITH_KEYS), logits.shape[:-1])
    d_logits = weights * (d_weights - saved.mean[..., None])
    if slope is not None:
        d_logits *= slope
    d_logits = _rows(d_logits).astype(keys.k.dtype)
    d_k = _dot(d_logits, _rows(queries.q), _OVER_ROWS)
    d_q += _by_head(_dot(d_logits, keys.k, _WITH_VALUES), logits.shape[:-1])
    return d_q, (d_kv[0] + d_k, d_kv[1] + d_v)


def _logits(soft_cap: float | None, queries: Queries, keys: Keys):
    """Masked logits [B, K, G, L, S] in float32, which of them are seen, and the slope of the soft cap or None."""
    logits = _by_head(_dot(_rows(queries.q), keys.k, _WITH_KEYS), queries.q.shape[:-1])
    slope = None
    if soft_cap is not None:
        capped = jnp.tanh(logits / soft_cap)
        logits, slope = soft_cap * capped, 1.0 - jnp.square(capped)
    index = keys.index[:, None, :]
    allowed = index <= queries.last[:, :, None]
    if queries.first is not None:
        allowed &= index >= queries.first[:, :, None]
    if queries.segments is not None:
        allowed &= queries.segments[:, :, None] == keys.segments[:, None, :]
    allowed = allowed[:, None, None]
    return jnp.where(allowed, logits, _MASKED), allowed, slope


def _live(queries: Queries, keys: Keys) -> jax.Array:
    """bool [tiles of queries, tiles of keys], False where no query sees a key in any row of the batch."""

    def least(x: jax.Array) -> jax.Array:
        return jnp.min(x, axis=-1)

    def most(x: jax.Array) -> jax.Array:
        return jnp.max(x, axis=-1)

    live = least(keys.index)[None] <= most(queries.last)[:, None]
    if queries.first is not None:
        live &= most(keys.index)[None] >= least(queries.first)[:, None]
    if queries.segments is not None:
        live &= least(keys.segments)[None] <= most(queries.segments)[:, None]
        live &= most(keys.segments)[None] >= least(queries.segments)[:, None]
    return jnp.any(live, axis=-1)


def _dot(a: jax.Array, b: jax.Array, dimensions: Any) -> jax.Array:
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _rows(x: jax.Array) -> jax.Array:
    """[B, K, G, L, H] to [B, K, G * L, H]: the query heads of one kv head are rows of one product."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _by_head(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_rows`, for `shape` [B, K, G, L]."""
    return x.reshape(*shape, x.shape[-1])
