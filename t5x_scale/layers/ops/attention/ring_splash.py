"""What one device of a ring attends to at a time, by JAX's splash kernel for TPUs.

The kernel compares numbers of queries with the places 0, 1, 2, ... that keys have in their shard. The numbers are made
anew for the keys of each turn: how many of them stand up to the last that a query sees, and in front of the first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5x_scale.layers.ops.attention import online
from t5x_scale.layers.ops.attention.blocks import PADDING, Span, plan_by_keys, plan_by_queries
from t5x_scale.layers.ops.attention.online import MASKED, Keys, Queries, Seen, Settings, Vectors
from t5x_scale.layers.ops.attention.splash import (
    LANES,
    LONGEST_PACKED,
    TABLE_BYTES,
    SeesBetween,
    SeesUpTo,
    both_ends,
    table_bytes,
)
from t5x_scale.partitioning.proposals import divisors
from t5x_scale.partitioning.shardings import current_platform

# The largest that is proposed: beyond it no generation has the vector memory.
LARGEST_BLOCK = 1024


class Saved(NamedTuple):
    """What the backward pass knows of queries: output and its gradient [N, B * L, H], log Z [N, B * L]."""

    out: Any
    log_z: Any
    d_out: Any


def unsupported(rows: int, length: int, block: int) -> str | None:
    """Why the kernel does not take a device's rows and its part of their length, in blocks of at most `block`."""
    if length % LANES:
        return f"a device's part of a row, {length} tokens, is no multiple of {LANES}"
    if length > LONGEST_PACKED:
        return f"a device's part of a row, {length} tokens, is longer than {LONGEST_PACKED}"
    if _is_plannable(rows, length, block):
        return None
    larger = (n * LANES for n in divisors(length // LANES) if n * LANES > block)
    near = next((size for size in larger if size <= LARGEST_BLOCK and _is_plannable(rows, length, size)), None)
    meant = "fewer rows at a time would do" if near is None else f"Attention.block={near} would do"
    return (
        f"the plan of {rows} x {length} tokens in blocks of {whole_block(length, block)} exceeds scalar memory; {meant}"
    )


def _is_plannable(rows: int, length: int, block: int) -> bool:
    return table_bytes(rows, length, whole_block(length, block)) <= TABLE_BYTES


def whole_block(length: int, block: int) -> int:
    """The largest multiple of 128, at most `block`, that divides a length: nothing is padded in a ring."""
    return LANES * max(n for n in divisors(length // LANES) if n * LANES <= block)


def prepare(q_BLNH: jax.Array, k_BLKH: jax.Array, v_BLKH: jax.Array, vectors: Vectors) -> tuple[Queries, Keys]:
    """A device's queries, and its keys in the form in which they travel."""
    rows = q_BLNH.shape[:2]
    of_queries, of_keys = (
        None if x is None else jnp.where(x == 0, PADDING, x) for x in (vectors.query_segments, vectors.key_segments)
    )
    first, last = (None if x is None else jnp.broadcast_to(x, rows) for x in (vectors.first, vectors.last))
    q, k, v = (_by_head(x) for x in (q_BLNH, k_BLKH, v_BLKH))
    return Queries(q, first, last, of_queries), Keys(k, v, vectors.index, of_keys)


def nothing_seen(queries: Queries) -> Seen:
    """Where the queries begin."""
    return online.nothing_seen(queries.q.shape)


def finish(queries: Queries, seen: Seen) -> tuple[jax.Array, jax.Array]:
    """The output [B, L, N, H] and log Z [B, N, L] after all keys."""
    out, log_z = online.finish(seen)
    B, L = queries.last.shape
    return _to_rows(out, B).astype(queries.q.dtype), jnp.swapaxes(log_z.reshape(-1, B, L), 0, 1)


def save(queries: Queries, out: jax.Array, log_z: jax.Array, d_out: jax.Array) -> Saved:
    """What `finish` gave, and the gradient of the output, for the backward pass."""
    log_z = jnp.swapaxes(log_z, 0, 1).reshape(queries.q.shape[:-1])
    return Saved(_by_head(out), log_z, _by_head(d_out))


def attend(settings: Settings, queries: Queries, keys: Keys, seen: Seen) -> Seen:
    """Adds what the queries see of these keys."""
    kernel = _Kernel(settings, queries, keys)

    def add() -> Seen:
        out, log_z = kernel.forward()
        # Where a query sees none of these keys the kernel divides by 0, or takes the mean of what is masked.
        is_seen = log_z > MASKED
        part = Seen(
            values=jnp.where(is_seen[..., None], out.astype(jnp.float32), 0.0),
            largest=jnp.where(is_seen, log_z, MASKED),
            weights=is_seen.astype(jnp.float32),
        )
        return online.merge(seen, part)

    return jax.lax.cond(kernel.is_live, add, lambda: seen)


def attend_backward(
    settings: Settings, queries: Queries, saved: Saved, keys: Keys, d_q: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Adds to the gradient of the queries, and makes those of these keys and values, float32."""
    kernel = _Kernel(settings, queries, keys)

    def add() -> Any:
        more, d_k, d_v = (x.astype(jnp.float32) for x in kernel.backward(saved))
        return d_q + more, (d_k, d_v)

    zeros = (jnp.zeros(keys.k.shape, jnp.float32), jnp.zeros(keys.v.shape, jnp.float32))
    return jax.lax.cond(kernel.is_live, add, lambda: (d_q, zeros))


def restore(queries: Queries, d_q: jax.Array, d_k: jax.Array, d_v: jax.Array) -> tuple[jax.Array, ...]:
    """Gradients as [B, L, N, H] and [B, L, K, H]."""
    return tuple(_to_rows(x, len(queries.last)) for x in (d_q, d_k, d_v))


class _Kernel:
    """The kernels for one turn: these queries, those keys."""

    def __init__(self, settings: Settings, queries: Queries, keys: Keys):
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

        self._splash, self._queries, self._keys = splash, queries, keys
        B, L = queries.last.shape
        span = _in_shard(queries, keys)
        block = whole_block(L, settings.block)
        by_queries = plan_by_queries(span, block, block, None)
        by_keys = plan_by_keys(span, block, block, None)
        self.is_live = jnp.any(by_queries.live > 0)
        # Keys of all rows lie on one axis; the number of a query counts on it, unless it holds both of its ends.
        self._sees, number = SeesUpTo(None), span.last + L * np.arange(B, dtype=np.int32)[:, None]
        if queries.first is not None:
            self._sees, number = SeesBetween(L), both_ends(span)
        self._by_queries, self._by_keys = (_to_info(plan, number.reshape(-1)) for plan in (by_queries, by_keys))
        self._segments = None
        if queries.segments is not None:
            self._segments = splash.SegmentIds(queries.segments.reshape(-1), keys.segments.reshape(-1))
        names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
        kv_heads = keys.k.shape[0]
        # JAX lets the cores of a chip (two on v4 and v5p) share the work of backward kernels along mapped axes only.
        self._cores = 2 if queries.q.shape[0] % 2 == 0 and (kv_heads == 1 or kv_heads % 2 == 0) else 1
        self._is_shared = kv_heads == 1
        self._options = {
            "mask_value": splash.DEFAULT_MASK_VALUE,
            "is_mqa": max(kv_heads // self._cores, 1) == 1,
            "block_sizes": splash.BlockSizes(**dict.fromkeys(names, block)),
            "residual_checkpoint_name": None,
            "mask_function": self._sees,
            "attn_logits_soft_cap": settings.soft_cap,
            "interpret": current_platform() != "tpu",
        }

    def forward(self) -> tuple[jax.Array, jax.Array]:
        """Output [N, B * L, H], a mean over these keys only, and their log Z [N, B * L]."""

        def call(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            out, (log_z,) = self._splash._splash_attention_forward(
                self._by_queries, q, k, v, self._segments, None, save_residuals=True, **self._options
            )
            return out, log_z

        axis = None if self._is_shared else 0
        out, log_z = jax.vmap(call, (0, axis, axis))(self._of_queries(self._queries.q), *self._of_keys())
        return out.reshape(self._queries.q.shape), log_z.reshape(self._queries.q.shape[:-1])

    def backward(self, saved: Saved) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Gradients of queries, keys and values, with the weights that follow from the log Z of all keys."""

        def call(k: jax.Array, v: jax.Array, q: jax.Array, out: jax.Array, log_z: jax.Array, d_out: jax.Array) -> Any:
            known = (q, k, v, self._segments, None, out, log_z, self._by_queries, self._by_keys)
            return self._splash._splash_attention_bwd(save_residuals=False, res=known, do=d_out, **self._options)[3:6]

        axis = None if self._is_shared else 0
        of_queries = [self._of_queries(x) for x in (self._queries.q, *saved)]
        d_q, *d_kv = jax.vmap(call, (axis, axis, 0, 0, 0, 0))(*self._of_keys(), *of_queries)
        if self._is_shared:
            d_kv = [jnp.sum(x.astype(jnp.float32), axis=0) for x in d_kv]
        return d_q.reshape(self._queries.q.shape), *(x.reshape(self._keys.k.shape) for x in d_kv)

    def _of_queries(self, x: jax.Array) -> jax.Array:
        return x.reshape(self._cores, -1, *x.shape[1:])

    def _of_keys(self) -> tuple[jax.Array, ...]:
        if self._is_shared:
            return self._keys.k[0], self._keys.v[0]
        pairs = (x.reshape(self._cores, -1, *x.shape[1:]) for x in (self._keys.k, self._keys.v))
        return tuple(x[:, 0] if self._options["is_mqa"] else x for x in pairs)


def _in_shard(queries: Queries, keys: Keys) -> Span:
    """What each query sees, by places in the shard of the keys."""
    half = keys.index.shape[1] // 2

    def count(index: jax.Array) -> jax.Array:
        """Keys up to an index: places rise in each half."""
        halves = ((keys.index[:, :1], half), (keys.index[:, half : half + 1], keys.index.shape[1] - half))
        return sum(jnp.clip(index - first + 1, 0, size) for first, size in halves)

    last = count(queries.last) - 1
    first = jnp.zeros_like(last) if queries.first is None else count(queries.first - 1)
    # Numbers must not be negative where they share one.
    nothing = first > last
    if queries.first is not None:
        first, last = jnp.where(nothing, 1, first), jnp.where(nothing, 0, last)
    return Span(first, last, queries.segments, keys.segments)


def _to_info(plan: Any, number: jax.Array) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info

    return splash_attention_mask_info.MaskInfo(
        data_next=plan.fetch, mask_next=None, block_mask=plan.live, partial_mask_blocks=None, q_sequence=number
    )


def _by_head(x_BLNH: jax.Array) -> jax.Array:
    """[N, B * L, H]."""
    return jnp.moveaxis(x_BLNH, 2, 0).reshape(x_BLNH.shape[2], -1, x_BLNH.shape[3])


def _to_rows(x: jax.Array, batch_size: int) -> jax.Array:
    """The inverse of `_by_head`."""
    return jnp.moveaxis(x.reshape(x.shape[0], batch_size, -1, x.shape[2]), 0, 2)
