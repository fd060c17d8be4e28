"""Which blocks of the logits a blocked kernel has to visit, and the order in which it visits them.

A kernel walks over blocks of queries and blocks of keys. Here the masks of this project become its work plan: for each
block of queries the candidate blocks of keys (and the other way about for the gradients of keys and values), which of
them are live, and which block to fetch next while a dead one is passed over. All of it is arithmetic on vectors of
length L, done where the program runs, since packed rows differ from batch to batch.

The rows of a batch lie one after another on one long axis, so that one call of the kernel serves them all; a plan never
leads from one row into another.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Takes the place of segment 0, padding, which stands behind the documents of a row: ids then rise along it.
PADDING = np.iinfo(np.int32).max


class Span(NamedTuple):
    """What each query sees, int32 [B, L] each, by index within its row.

    Attributes:
      first, last: the first and the last key.
      segments: the segment it has to share with a key, or None.
      key_segments: those of the keys, or None where queries are their own keys.
    """

    first: jax.Array
    last: jax.Array
    segments: jax.Array | None
    key_segments: jax.Array | None = None


class Plan(NamedTuple):
    """Visits of a kernel, int32 [1, query blocks, key blocks] over all rows, one of the two being candidates.

    Attributes:
      fetch: the block, counted over all rows, to have at hand: the visited one, or beside dead ones the next live one.
      live: 1 where something is seen.
    """

    fetch: jax.Array
    live: jax.Array


def plan_by_queries(span: Span, block_q: int, block_kv: int, reach: int | None) -> Plan:
    """For each block of queries its candidate blocks of keys: [1, B * query blocks, candidates].

    Args:
      span: what is seen.
      block_q, block_kv: sizes that divide L.
      reach: no query sees a key later than itself or `reach` keys or more before; None says nothing.
    """
    B, L = span.first.shape
    candidates = _candidate_keys(L, block_q, block_kv, reach)
    live = _pick(_live(span, block_q, block_kv), candidates)
    blocks = candidates + (L // block_kv) * np.arange(B, dtype=np.int32)[:, None, None]
    fetch = _next_live(blocks.reshape(-1), live.reshape(-1), B * L // block_kv)
    shape = (1, -1, candidates.shape[1])
    return Plan(fetch.reshape(shape), live.astype(jnp.int32).reshape(shape))


def plan_by_keys(span: Span, block_q: int, block_kv: int, reach: int | None) -> Plan:
    """For each block of keys its candidate blocks of queries: [1, candidates, B * key blocks]. Arguments as above."""
    B, L = span.first.shape
    candidates = _candidate_queries(L, block_q, block_kv, reach)
    live = _pick(jnp.swapaxes(_live(span, block_q, block_kv), 1, 2), candidates)
    blocks = candidates + (L // block_q) * np.arange(B, dtype=np.int32)[:, None, None]
    # The queries of one block of keys are gone through again for every head, so the next is looked for among them.
    shape = (-1, candidates.shape[1])
    fetch = _next_live(blocks.reshape(shape), live.reshape(shape), B * L // block_q)
    return Plan(fetch.T[None], live.astype(jnp.int32).reshape(shape).T[None])


def share_of_live_blocks(span: Span, block_q: int, block_kv: int) -> jax.Array:
    """The part of all blocks that a kernel computes: what its cost follows."""
    return jnp.mean(_live(span, block_q, block_kv).astype(jnp.float32))


def _candidate_keys(length: int, block_q: int, block_kv: int, reach: int | None) -> np.ndarray:
    """int32 [query blocks, candidates]: blocks of keys; a row that has fewer ends in repetitions."""
    count = length // block_kv
    if reach is None:
        return np.broadcast_to(np.arange(count, dtype=np.int32), (length // block_q, count))
    begins = np.arange(0, length, block_q)
    first = np.maximum(begins - reach + 1, 0) // block_kv
    return _ranges(first, (begins + block_q - 1) // block_kv)


def _candidate_queries(length: int, block_q: int, block_kv: int, reach: int | None) -> np.ndarray:
    """int32 [key blocks, candidates]: blocks of queries."""
    count = length // block_q
    if reach is None:
        return np.broadcast_to(np.arange(count, dtype=np.int32), (length // block_kv, count))
    begins = np.arange(0, length, block_kv)
    last = np.minimum(begins + block_kv - 1 + reach - 1, length - 1) // block_q
    return _ranges(begins // block_q, last)


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    width = int((last - first).max()) + 1
    return np.minimum(first[:, None] + np.arange(width), last[:, None]).astype(np.int32)


def _pick(live: jax.Array, candidates: np.ndarray) -> jax.Array:
    """bool [B, blocks, candidates] from bool [B, blocks, all others]."""
    width = live.shape[2]
    if candidates.shape[1] == width and (candidates == np.arange(width)).all():
        return live
    # The last candidate may stand again where a row has fewer.
    is_new = np.diff(candidates, axis=1, prepend=-1) > 0
    return live[:, np.arange(live.shape[1])[:, None], candidates] & is_new


def _live(span: Span, block_q: int, block_kv: int) -> jax.Array:
    """bool [B, query blocks, key blocks]: where a query may see a key. May err on the side of True."""
    B, L = span.first.shape
    begins = np.arange(0, L, block_kv)
    first, last = (x.reshape(B, -1, block_q, 1) for x in (span.first, span.last))
    live = (first.min(2) < begins + block_kv) & (last.max(2) >= begins)
    if span.segments is not None:
        of_keys = span.segments if span.key_segments is None else span.key_segments
        q, k = span.segments.reshape(B, -1, block_q), of_keys.reshape(B, -1, block_kv)
        live &= (q.min(2)[:, :, None] <= k.max(2)[:, None]) & (q.max(2)[:, :, None] >= k.min(2)[:, None])
    return live


def _next_live(blocks: np.ndarray, live: jax.Array, count: int) -> jax.Array:
    """Along the last axis, the block of the first live visit from each on; behind the last comes the first again.

    `blocks` are below `count`. Visits are numbered so that the number tells the block: a table to look it up in would
    be slow on TPU.
    """
    numbers = np.arange(live.shape[-1], dtype=np.int32) * count + blocks
    never = np.iinfo(np.int32).max
    upcoming = jax.lax.cummin(jnp.where(live, numbers, never), axis=live.ndim - 1, reverse=True)
    return jnp.where(upcoming == never, upcoming[..., :1], upcoming) % count
