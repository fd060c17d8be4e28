"""What one device of a ring attends to at a time, in plain array operations, tile by tile.

Arrays are cut into tiles along the length, tiles first, and no more scores exist at once than those of one tile of
queries with one of keys. A pair of tiles whose indices or segments never meet is skipped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_scale.layers.ops.attention import online
from t5x_scale.layers.ops.attention.online import MASKED, Keys, Queries, Seen, Settings, Vectors

# What a tile is to be no smaller than, and no larger than where the length divides so.
_SMALLEST, _LARGEST = 128, 512

# Products of [B, K, rows, H] by head: with the keys, with the values, and over the rows.
_WITH_KEYS = (((3,), (3,)), ((0, 1), (0, 1)))
_WITH_VALUES = (((3,), (2,)), ((0, 1), (0, 1)))
_OVER_ROWS = (((2,), (2,)), ((0, 1), (0, 1)))


class Saved(NamedTuple):
    """What the backward pass knows of queries: the gradient of their output [B, K, G, L, H], log Z, and the sum of the
    products of output and gradient, [B, K, G, L]; all in tiles."""

    d_out: Any
    log_z: Any
    mean: Any


def prepare(q_BLNH: jax.Array, k_BLKH: jax.Array, v_BLKH: jax.Array, vectors: Vectors) -> tuple[Queries, Keys]:
    """A device's queries, and its keys in the form in which they travel."""
    size = tile_length(q_BLNH.shape[1])
    q = _cut(_by_head(q_BLNH, k_BLKH.shape[2]), 3, size)
    k, v = (_cut(jnp.swapaxes(x, 1, 2), 2, size) for x in (k_BLKH, v_BLKH))
    first, last, of_queries, index, of_keys = (None if x is None else _cut(x, 1, size) for x in vectors)
    return Queries(q, first, last, of_queries), Keys(k, v, index, of_keys)


def nothing_seen(queries: Queries) -> Seen:
    """Where the queries begin."""
    return online.nothing_seen(queries.q.shape)


def finish(queries: Queries, seen: Seen) -> tuple[jax.Array, jax.Array]:
    """The output [B, L, N, H] and log Z [B, N, L] after all keys."""
    out, log_z = online.finish(Seen(*(_join(x, 3) for x in seen)))
    return _to_rows(out).astype(queries.q.dtype), log_z.reshape(log_z.shape[0], -1, log_z.shape[-1])


def save(queries: Queries, out: jax.Array, log_z: jax.Array, d_out: jax.Array) -> Saved:
    """What `finish` gave, and the gradient of the output, for the backward pass."""
    _, _, K, _, tile, _ = queries.q.shape
    mean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    log_z = jnp.swapaxes(log_z, 1, 2)[..., None]
    d_out, log_z, mean = (_cut(_by_head(x, K), 3, tile) for x in (d_out, log_z, mean))
    return Saved(d_out, log_z[..., 0], mean[..., 0])


def restore(queries: Queries, d_q: jax.Array, d_k: jax.Array, d_v: jax.Array) -> tuple[jax.Array, ...]:
    """Gradients as [B, L, N, H] and [B, L, K, H]."""
    del queries
    return _to_rows(_join(d_q, 3)), *(jnp.swapaxes(_join(x, 2), 1, 2) for x in (d_k, d_v))


def attend(settings: Settings, queries: Queries, keys: Keys, seen: Seen) -> Seen:
    """Adds what the queries see of these keys."""
    live = _live(queries, keys)

    def row(_: None, own: Any) -> tuple[None, Seen]:
        queries, seen, live = own

        def column(seen: Seen, own: Any) -> tuple[Seen, None]:
            keys, live = own
            return jax.lax.cond(live, lambda: _add(settings.soft_cap, queries, keys, seen), lambda: seen), None

        return None, jax.lax.scan(column, seen, (keys, live))[0]

    return jax.lax.cond(jnp.any(live), lambda: jax.lax.scan(row, None, (queries, seen, live))[1], lambda: seen)


def attend_backward(
    settings: Settings, queries: Queries, saved: Saved, keys: Keys, d_q: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Adds to the gradient of the queries, and makes those of these keys and values, float32."""
    live = _live(queries, keys)
    zeros = (jnp.zeros(keys.k.shape, jnp.float32), jnp.zeros(keys.v.shape, jnp.float32))

    def row(d_kv: Any, own: Any) -> tuple[Any, jax.Array]:
        queries, saved, d_q, live = own

        def column(d_q: jax.Array, own: Any) -> tuple[jax.Array, Any]:
            keys, d_kv, live = own
            return jax.lax.cond(
                live,
                lambda: _add_gradients(settings.soft_cap, queries, saved, keys, d_q, d_kv),
                lambda: (d_q, d_kv),
            )

        d_q, d_kv = jax.lax.scan(column, d_q, (keys, d_kv, live))
        return d_kv, d_q

    def all_rows() -> Any:
        d_kv, d_rows = jax.lax.scan(row, zeros, (queries, saved, d_q, live))
        return d_rows, d_kv

    return jax.lax.cond(jnp.any(live), all_rows, lambda: (d_q, zeros))


def tile_length(length: int) -> int:
    """How long tiles are. Two make up `length` if it is even: the halves of the zigzag order are not alike."""
    half = length // 2 if length % 2 == 0 else length
    divisors = [size for size in range(1, half + 1) if half % size == 0]
    fitting = [size for size in divisors if _SMALLEST <= size <= _LARGEST]
    return max(fitting) if fitting else min(size for size in divisors if size >= min(_SMALLEST, half))


def _add(soft_cap: float | None, queries: Queries, keys: Keys, seen: Seen) -> Seen:
    logits, allowed, _ = _logits(soft_cap, queries, keys)
    largest = jnp.maximum(seen.largest, jnp.max(logits, axis=-1))
    # A query that has seen nothing yet would take a masked logit for its largest.
    weights = jnp.where(allowed, jnp.exp(logits - largest[..., None]), 0.0)
    fading = jnp.exp(seen.largest - largest)
    values = _dot(_rows(weights).astype(keys.v.dtype), keys.v, _WITH_VALUES).reshape(seen.values.shape)
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
    d_weights = _dot(d_out, keys.v, _WITH_KEYS).reshape(logits.shape)
    d_logits = weights * (d_weights - saved.mean[..., None])
    if slope is not None:
        d_logits *= slope
    d_logits = _rows(d_logits).astype(keys.k.dtype)
    d_k = _dot(d_logits, _rows(queries.q), _OVER_ROWS)
    d_q += _dot(d_logits, keys.k, _WITH_VALUES).reshape(d_q.shape)
    return d_q, (d_kv[0] + d_k, d_kv[1] + d_v)


def _logits(soft_cap: float | None, queries: Queries, keys: Keys):
    """Masked logits [B, K, G, L, S] in float32, which of them are seen, and the slope of the soft cap or None."""
    logits = _dot(_rows(queries.q), keys.k, _WITH_KEYS).reshape(*queries.q.shape[:-1], -1)
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
    return jnp.where(allowed, logits, MASKED), allowed, slope


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


def _by_head(x: jax.Array, kv_heads: int) -> jax.Array:
    """[B, L, N, H] to [B, K, G, L, H]."""
    x = jnp.swapaxes(x, 1, 2)
    return x.reshape(x.shape[0], kv_heads, -1, *x.shape[2:])


def _to_rows(x: jax.Array) -> jax.Array:
    """The inverse of `_by_head`."""
    return jnp.swapaxes(x.reshape(x.shape[0], -1, *x.shape[3:]), 1, 2)


def _cut(x: jax.Array, axis: int, tile: int) -> jax.Array:
    """[..., L, ...] to [L / tile, ..., tile, ...], `axis` being the length."""
    x = x.reshape(*x.shape[:axis], x.shape[axis] // tile, tile, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _join(x: jax.Array, axis: int) -> jax.Array:
    """The inverse of `_cut`."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
