"""Attention on TPU by JAX's splash kernel: no array of the size L x L, and no work where a mask hides whole blocks.

The kernel asks a function of two numbers, one of a query and the index of a key, whether the one sees the other. The
number need not be the query's index. Here it is the last key that the query sees, which makes bidirectional prefixes
and causal attention one case, and with windows the first and the last in one number; segments the kernel knows itself.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.layers.masks import Mask
from t5x_scale.layers.ops.attention.blocks import PADDING, Span, plan_by_keys, plan_by_queries
from t5x_scale.layers.ops.attention.case import SAVED, Case
from t5x_scale.layers.ops.attention.sharded import Vectors, has_split_length, over_mesh, to_vectors
from t5x_scale.partitioning.shardings import current_platform

# Queries and keys of one block, in all three kernels. Larger blocks visit more of what a mask hides; smaller ones spend
# more time on moving between them and read keys more often. Blocks of 1024 with heads of 256 do not fit into the vector
# memory of v4. Visited of all blocks, at blocks of 256, 512 and 1024: causal rows of 2048 .56 .63 .75, of 8192 .52 .53
# .56; rows of 2048 packed with documents of 300 tokens on average .30 .45 .75, of 8192 .08 .13 .24.
BLOCK = 512
# Shorter lengths take one block, a multiple of the width of a vector register.
LANES = 128

# What plans may take of the scalar memory, 1 MiB on v4; rows of a batch that need more are attended to in turns.
TABLE_BYTES = 15 << 16

# Where first and last key share a number: 16 bits for the last, 15 for the first.
_LAST_BITS = 16
LONGEST_PACKED = 1 << 15


def check_block(block: int) -> None:
    """Raises:
    UserError: no block of the kernel has this size.
    """
    if not isinstance(block, int) or block < LANES or block % LANES:
        raise UserError(f"Attention.block is {block!r}: a multiple of {LANES}, such as {BLOCK}")


def unsupported(case: Case) -> str | None:
    """Why splash does not cover `case`."""
    if current_platform() == "gpu":
        return "splash is a kernel for TPUs, and the devices are GPUs"
    if case.is_cached:
        return "queries stand at places in a cache"
    if case.mask.key_index is not None:
        return "the length is stored in another order"
    if case.has_bias:
        return "something is added to the logits (relative positions)"
    if jnp.dtype(case.dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)):
        return f"it computes in bfloat16 and float32, not in {jnp.dtype(case.dtype).name}"
    if has_split_length():
        return "each device has a part of every sequence only (the mesh axis context)"
    length = case.query_shape[1]
    if _packs_both_ends(case.mask, case.window) and length > LONGEST_PACKED:
        what = "a window that differs from layer to layer" if case.mask.window is not None else "a window and a prefix"
        return f"{what} at length {length}: beyond {LONGEST_PACKED} only a window of all layers without prefixes"
    if table_bytes(1, length, case.block) > TABLE_BYTES:
        return f"the plan of the blocks of a row of {length} does not fit into scalar memory"
    return None


def _packs_both_ends(mask: Mask, window: int | None) -> bool:
    return mask.window is not None or (window is not None and mask.last_visible is not None)


class _Static(NamedTuple):
    scale: float
    window: int | None
    soft_cap: float | None
    block: int


def attention_splash(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    bias_BNLS: jax.Array | None = None,
    block: int = BLOCK,
) -> jax.Array:
    """As `attention`, for cases that are not `unsupported`. On a CPU the kernel is interpreted: for tests.

    Args:
      block: queries and keys of a block, a multiple of 128.
    """
    assert bias_BNLS is None
    static = _Static(scale, window, soft_cap, block)
    vectors = to_vectors(mask, q_BLNH.shape[0])
    return over_mesh(functools.partial(_attend_in_turns, static), q_BLNH, k_BSKH, v_BSKH, vectors)


def _attend_in_turns(static: _Static, q: jax.Array, k: jax.Array, v: jax.Array, vectors: Vectors) -> jax.Array:
    B, L = q.shape[:2]
    rows = max(n for n in range(1, B + 1) if B % n == 0 and (n == 1 or table_bytes(n, L, static.block) <= TABLE_BYTES))
    if rows == B:
        return _attend(static, q, k, v, vectors)
    window = vectors.window
    by_rows = jax.tree.map(lambda x: x.reshape(B // rows, rows, *x.shape[1:]), (q, k, v, vectors._replace(window=None)))
    out = jax.lax.map(lambda turn: _attend(static, *turn[:3], turn[3]._replace(window=window)), by_rows)
    return out.reshape(q.shape)


def table_bytes(rows: int, length: int, block: int) -> int:
    """Scalar memory for the two tables, int32, of the larger of the plans; tiles of 8 x 128 are filled up."""
    blocks = -(-length // fitting_block(length, block))

    def table(shape: tuple[int, int]) -> int:
        return -(-shape[0] // 8) * 8 * -(-shape[1] // LANES) * LANES * 4

    return 2 * max(table((rows * blocks, blocks)), table((blocks, rows * blocks)))


def _attend(static: _Static, q_BLNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, vectors: Vectors) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    B, L, N, H = q_BLNH.shape
    block = fitting_block(L, static.block)
    padded = -(-L // block) * block
    q, k, v, cores = _by_core((q_BLNH * static.scale).astype(q_BLNH.dtype), k_BSKH, v_BSKH, padded)
    span = _make_span(vectors, static.window, B, L, padded)
    segments = None if span.segments is None else splash.SegmentIds(*2 * (span.segments.reshape(-1),))
    infos, sees = _make_mask_infos(span, vectors, static.window, block)
    kernel = splash.SplashAttentionKernel(
        *infos,
        block_sizes=splash.BlockSizes(**dict.fromkeys(_BLOCKS, block)),
        is_mqa=cores.is_multi_query,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=static.soft_cap,
        residual_checkpoint_name=SAVED,
        mask_function=sees,
        interpret=current_platform() != "tpu",
    )
    out = jax.vmap(kernel, (0, cores.kv_axis, cores.kv_axis, None))(q, k, v, segments)
    return jnp.moveaxis(out.reshape(N, B, padded, H), 0, 2)[:, :L]


class _Cores(NamedTuple):
    kv_axis: int | None
    is_multi_query: bool


def _by_core(q_BLNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, padded: int):
    """Queries [cores, heads, rows, H]; keys and values likewise, without heads if it is one, without cores if shared.

    The rows are those of the batch one after another, with zeros behind each. JAX lets the cores of a chip (v4 and v5p
    have two) share the work of the backward kernels only along axes that the kernel is mapped over.
    """
    N, K = q_BLNH.shape[2], k_BSKH.shape[2]
    count = 2 if N % 2 == 0 and (K == 1 or K % 2 == 0) else 1
    is_shared = K == 1
    is_multi_query = K in (1, count)

    def rows(x: jax.Array) -> jax.Array:
        _, L, N, H = x.shape
        return jnp.moveaxis(jnp.pad(x, ((0, 0), (0, padded - L), (0, 0), (0, 0))), 2, 0).reshape(N, -1, H)

    def keys(x: jax.Array) -> jax.Array:
        x = rows(x)
        if is_multi_query:
            return x[0] if is_shared else x
        return x.reshape(count, K // count, *x.shape[1:])

    q = rows(q_BLNH)
    q = q.reshape(count, N // count, *q.shape[1:])
    return q, keys(k_BSKH), keys(v_BSKH), _Cores(None if is_shared else 0, is_multi_query)


_BLOCKS = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")


def fitting_block(length: int, block: int = BLOCK) -> int:
    """The size of equal blocks, at most `block`, that leave least of a length to padding: a multiple of 128."""
    count = -(-length // block)
    return -(-length // (count * LANES)) * LANES


def _make_span(vectors: Vectors, window: int | None, batch_size: int, length: int, padded: int) -> Span:
    index = jnp.broadcast_to(np.arange(padded, dtype=np.int32), (batch_size, padded))
    behind = ((0, 0), (0, padded - length))
    # What pads a row sees at least itself: a query that sees nothing would divide by 0.
    last = index if vectors.last is None else jnp.where(index < length, jnp.pad(vectors.last, behind), index)
    first = jnp.zeros_like(index)
    for size in (window, vectors.window):
        if size is not None:
            first = jnp.maximum(first, index - size + 1)
    segments = vectors.segments
    if segments is not None:
        segments = jnp.pad(jnp.where(segments == 0, PADDING, segments), behind, constant_values=PADDING)
    return Span(first, last, segments)


def _make_mask_infos(span: Span, vectors: Vectors, window: int | None, block: int):
    """What the kernels for the output, for dq, and for dk and dv are told, and the function of query and key."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info

    B, L = span.first.shape
    reach = window if vectors.last is None else None
    sees: SeesUpTo | SeesBetween = SeesUpTo(reach)
    query = span.last + L * np.arange(B, dtype=np.int32)[:, None]
    if _packs_both_ends(Mask(last_visible=vectors.last, window=vectors.window), window):
        sees, query = SeesBetween(L), both_ends(span)

    def info(plan):
        return splash_attention_mask_info.MaskInfo(
            data_next=plan.fetch,
            mask_next=None,
            block_mask=plan.live,
            partial_mask_blocks=None,
            q_sequence=query.reshape(-1),
        )

    by_queries, by_keys = (
        info(plan_by_queries(span, block, block, reach)),
        info(plan_by_keys(span, block, block, reach)),
    )
    return (by_queries, by_queries, by_keys), sees


@dataclasses.dataclass(frozen=True)
class SeesUpTo:
    """The query is the last key it sees, and sees `reach` keys or all before it. Both count over all rows."""

    reach: int | None

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        sees = key <= query
        return sees if self.reach is None else sees & (query - key < self.reach)


def both_ends(span: Span) -> jax.Array:
    """The first and the last key of every query in one number, for `SeesBetween`."""
    return (span.first << _LAST_BITS) | span.last


@dataclasses.dataclass(frozen=True)
class SeesBetween:
    """The query is the first and the last key it sees, counted within its row of `length`."""

    length: int

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        is_power = self.length & (self.length - 1) == 0
        key = key & (self.length - 1) if is_power else jax.lax.rem(key, jnp.full_like(key, self.length))
        return (key <= (query & (1 << _LAST_BITS) - 1)) & (key >= query >> _LAST_BITS)
