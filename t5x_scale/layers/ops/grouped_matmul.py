"""Products of rows in groups, each group with a matrix of its own: the one function behind which kernels live.

On TPU it is XLA's own ragged product. Its form on other backends multiplies every row with every matrix (measured on
CPU, 8 matrices: ten times the time of one dense product of the same rows), so elsewhere, and for the gradients of the
matrices, blocks of rows are gone through in a loop, as many as the groups fill: 1.6 to 1.9 times the time of one dense
product with 8 large matrices, 3 to 4 times with 64 small ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.lax import DotDimensionNumbers, RaggedDotDimensionNumbers

# What policies of remat know the products by: inside of a loop they would not find them.
PRODUCT = "grouped_matmul"

# Rows with a matrix as it is stored, with its transpose, and rows with rows.
_PLAIN: DotDimensionNumbers = (((1,), (0,)), ((), ()))
_TURNED: DotDimensionNumbers = (((1,), (1,)), ((), ()))
_OVER_ROWS: DotDimensionNumbers = (((0,), (0,)), ((), ()))

_SHORTEST, _LONGEST = 8, 512


def grouped_matmul(x_MK: jax.Array, kernels_EKN: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """`x[m] @ kernels[e]` for every row m of group e: [M, N] in the dtype of `x_MK`.

    Args:
      x_MK: rows, those of one group next to each other and the groups in order.
      kernels_EKN: a matrix each group, in the dtype of `x_MK`.
      sizes_E: int32, rows of each group; any may be 0. Rows beyond their sum belong to no group: they cost little and
        their products are 0.
    """
    return checkpoint_name(_product(x_MK, kernels_EKN, sizes_E), PRODUCT)


def _one_by_one(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`function` of arrays, which a `vmap` calls for each entry by itself.

    Pipelines map over their stages, of which a device has one. The TPU compiler takes no ragged product of several, and
    a loop whose length is mapped over copies what it carries in every turn.
    """
    called = jax.custom_batching.custom_vmap(function)

    @called.def_vmap
    def _(axis_size: int, are_mapped: list[bool], *arrays: jax.Array) -> tuple[jax.Array, bool]:
        def entry(index: int) -> list[jax.Array]:
            return [x[index] if is_mapped else x for x, is_mapped in zip(arrays, are_mapped, strict=True)]

        return jnp.stack([called(*entry(index)) for index in range(axis_size)]), True

    return called


@jax.custom_vjp
def _product(x, kernels, sizes):
    return _with_kernels(x, kernels, sizes)


def _forward(x, kernels, sizes):
    return _product(x, kernels, sizes), (x, kernels, sizes)


def _backward(saved, d_y):
    x, kernels, sizes = saved
    return _with_turned(d_y, kernels, sizes), _over_rows(x, d_y, sizes).astype(kernels.dtype), None


_product.defvjp(_forward, _backward)


@_one_by_one
def _with_kernels(x, kernels, sizes):
    """[M, K] rows with [E, K, N]."""
    return _on_platform(x, kernels, sizes, turned=False)


@_one_by_one
def _with_turned(y, kernels, sizes):
    """[M, N] rows with the transposes of [E, K, N]."""
    return _on_platform(y, kernels, sizes, turned=True)


def _on_platform(x, kernels, sizes, turned):
    ragged, looped = (functools.partial(f, turned=turned) for f in (_ragged_with_kernels, _looped_with_kernels))
    return jax.lax.platform_dependent(x, kernels, sizes, tpu=ragged, default=looped)


def _ragged_with_kernels(x, kernels, sizes, turned):
    contract = (((1,), (2 if turned else 1,)), ((), ()))
    numbers = RaggedDotDimensionNumbers(contract, lhs_ragged_dimensions=[0], rhs_group_dimensions=[0])
    return _zero_beyond(sizes, jax.lax.ragged_dot_general(x, kernels, sizes, numbers))


class _Blocks(NamedTuple):
    """The work of a loop, block by block: arrays with an entry a block, of which the first `count` are real.

    A block begins where its group does or the block before it ends. The last block of a group reaches beyond it, into
    the rows of the groups that follow. As many as `usual` are real where the groups are alike and fill the rows.
    """

    group: jax.Array
    first: jax.Array
    end: jax.Array
    count: jax.Array
    usual: int


def _looped_with_kernels(x, kernels, sizes, turned):
    rows, block = len(x), _block_length(len(x), len(sizes))
    blocks = _make_blocks(sizes, rows, block)
    padded = _pad(x, block)

    def write(index, out):
        first = blocks.first[index]
        part = jax.lax.dynamic_slice_in_dim(padded, first, block)
        kernel = jax.lax.dynamic_index_in_dim(kernels, blocks.group[index], keepdims=False)
        y = jax.lax.dot_general(part, kernel, _TURNED if turned else _PLAIN)
        # What it writes beyond its group, later blocks write again.
        return jax.lax.dynamic_update_slice_in_dim(out, y, first, 0)

    zeros = _zeros((rows + block, kernels.shape[1 if turned else 2]), x.dtype, like=x)
    return _zero_beyond(sizes, _for_each_block(blocks, write, zeros)[:rows])


@_one_by_one
def _over_rows(x, y, sizes):
    """`x[group].T @ y[group]` for every group: float32 [E, K, N].

    A loop everywhere: of this ragged product the TPU compiler makes one of every row with every group.
    """
    rows, block = len(x), _block_length(len(x), len(sizes))
    blocks = _make_blocks(sizes, rows, block)
    padded_x, padded_y = _pad(x, block), _pad(y, block)

    def add(index, sums):
        first = blocks.first[index]
        inside = first + jnp.arange(block, dtype=jnp.int32) < blocks.end[index]
        part_x = jnp.where(inside[:, None], jax.lax.dynamic_slice_in_dim(padded_x, first, block), 0)
        part_y = jax.lax.dynamic_slice_in_dim(padded_y, first, block)
        product = jax.lax.dot_general(part_x, part_y, _OVER_ROWS, preferred_element_type=jnp.float32)
        return sums.at[blocks.group[index]].add(product)

    zeros = _zeros((len(sizes), x.shape[1], y.shape[1]), jnp.float32, like=x)
    return _for_each_block(blocks, add, zeros)


def _for_each_block(blocks: _Blocks, body: Callable[[jax.Array, jax.Array], jax.Array], start: jax.Array) -> jax.Array:
    # How often it turns is in the data: the name tells whoever reads the compiled program what is usual.
    with jax.named_scope(f"about_{blocks.usual}_turns"):
        return jax.lax.fori_loop(0, blocks.count, body, start)


def _block_length(rows: int, groups: int) -> int:
    """Rows of a block: half of an average group, so that a group's last block wastes little (measured)."""
    half = max(rows // (2 * groups), 1)
    return int(np.clip(1 << (half - 1).bit_length(), _SHORTEST, _LONGEST))


def _make_blocks(sizes: jax.Array, rows: int, block: int) -> _Blocks:
    ends = jnp.cumsum(sizes)
    number = (sizes + block - 1) // block
    number_so_far = jnp.cumsum(number)
    index = jnp.arange(rows // block + len(sizes), dtype=sizes.dtype)
    group = jnp.sum(index[:, None] >= number_so_far, axis=1, dtype=sizes.dtype)
    group = jnp.minimum(group, len(sizes) - 1)
    first = (ends - sizes)[group] + (index - (number_so_far - number)[group]) * block
    # Half a block is left over of each group.
    return _Blocks(group, first, ends[group], number_so_far[-1], usual=rows // block + len(sizes) // 2)


def _pad(x: jax.Array, block: int) -> jax.Array:
    # A block that reached beyond the array would be moved back into it.
    return jnp.pad(x, ((0, block), (0, 0)))


def _zero_beyond(sizes: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(jnp.arange(len(y))[:, None] < jnp.sum(sizes), y, 0)


def _zeros(shape: tuple[int, ...], dtype, like: jax.Array) -> jax.Array:
    # A sum of nothing: for `shard_map` it differs from device to device as `like` does, and so may what a loop adds.
    return jnp.broadcast_to(jnp.sum(like[:0]).astype(dtype), shape)
