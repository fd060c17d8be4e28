"""Attention masks as descriptions: a few vectors of length L, never an L x L array that has to be stored.

Every mask this project knows (causal, prefix-LM, packed segments, window, cached decoding) is one rule. Query
`i` sees key `j` when

    first_i <= index_j <= last_i   and   segment_i == segment_j

where `last_i` is the query's own index, or the last position of its segment's bidirectional prefix if that is
later, and `first_i` is 0, or `index_i - window + 1`. Kernels take the vectors; the reference compares them. A window
is either known when a program is traced, or a number that differs from layer to layer of one traced loop. Indices are
places in a row, and those of the keys are 0, 1, 2, ... unless the row is stored in another order.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

# A window that hides nothing: beyond any length, and no index minus it leaves the range of int32.
NO_WINDOW = 1 << 30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which keys each query sees.

    Attributes:
      query_index: int32 [B, L] or None for 0 ... L-1. Where each query stands among the keys.
      last_visible: int32 [B, L] or None for `query_index` (causal).
      query_segments: int32 [B, L], or None when all is one segment.
      key_segments: int32 [B, S], or None when all is one segment.
      window: int32 scalar, how many keys each query sees at most, or None for all. A layer's own, where layers differ.
      key_index: int32 [B, S] or None for 0 ... S-1. Where each key stands, for a length in another order.
    """

    query_index: jax.Array | None = None
    last_visible: jax.Array | None = None
    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    window: jax.Array | None = None
    key_index: jax.Array | None = None

    @property
    def is_token(self) -> jax.Array | None:
        """bool [B, L], False at padding, which has segment 0 or index -1; None where neither is said."""
        if self.query_segments is not None:
            return self.query_segments != 0
        return None if self.query_index is None else self.query_index >= 0

    def allowed(self, query_length: int, key_length: int, window: int | None = None) -> jax.Array:
        """The dense mask, bool [B or 1, L, S]. Fused into its consumer; kernels do without it."""
        index = self.query_index
        if index is None:
            index = jnp.arange(query_length, dtype=jnp.int32)[None]
        last = index if self.last_visible is None else self.last_visible
        keys = jnp.arange(key_length, dtype=jnp.int32)[None] if self.key_index is None else self.key_index
        keys = keys[:, None, :]
        allowed = keys <= last[..., None]
        for size in (window, self.window):
            if size is not None:
                allowed &= keys > index[..., None] - size
        if self.query_segments is not None:
            allowed &= self.query_segments[:, :, None] == self.key_segments[:, None, :]
        return allowed


def make_mask(
    segments: jax.Array | None = None, prefix: jax.Array | None = None, index: jax.Array | None = None
) -> Mask:
    """The mask of a training batch.

    Args:
      segments: int32 [B, L], 1, 2, ... for packed documents and 0 for padding, or None.
      prefix: int32 or bool [B, L], 1 where a position belongs to the bidirectional prefix of its segment,
        or None for a causal model.
      index: int32 [B, L], where each position stands in its row, or None where they stand in order.
    """
    last = None
    if prefix is not None:
        last = _last_visible(prefix != 0, segments, index)
    return Mask(query_index=index, last_visible=last, query_segments=segments, key_segments=segments, key_index=index)


def _last_visible(prefix: jax.Array, segments: jax.Array | None, index: jax.Array | None) -> jax.Array:
    # A dense comparison: the TPU compiler fuses it, and fails on segment_max beside an attention kernel.
    if index is None:
        index = jnp.arange(prefix.shape[1], dtype=jnp.int32)[None]
    same = jnp.ones((1, 1, 1), bool) if segments is None else segments[:, :, None] == segments[:, None, :]
    last_prefix = jnp.max(jnp.where(same & prefix[:, None, :], index[:, None, :], -1), axis=-1)
    return jnp.maximum(index, last_prefix).astype(jnp.int32)
