"""What an implementation is asked to cover: one call of attention, told without its arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from t5x_scale.layers.masks import Mask
from t5x_scale.layers.tensor_names import CONTEXT

# An implementation names its output and its log-sum-exp so, where its own gradient finds them: with both saved, the
# backward pass does without the forward kernel.
SAVED = CONTEXT


class Case(NamedTuple):
    """Shapes and settings of a call of `attention`.

    Attributes:
      query_shape: (B, L, N, H).
      key_shape: (B, S, K, H).
      mask: which keys each query sees; its arrays may be traced, and whether they are there is what matters.
      window, soft_cap: as in `attention`.
      has_bias: whether something is added to the logits.
      block: of kernels that go by blocks.
    """

    query_shape: tuple[int, ...]
    key_shape: tuple[int, ...]
    dtype: Any
    mask: Mask
    window: int | None
    soft_cap: float | None
    has_bias: bool
    block: int

    @property
    def is_cached(self) -> bool:
        """Whether queries stand at given places among keys that are not their own, as in decoding."""
        is_placed = (self.mask.query_index is None) != (self.mask.key_index is None)
        return is_placed or self.query_shape[1] != self.key_shape[1]


def make_case(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    mask: Mask,
    window: int | None,
    soft_cap: float | None,
    bias_BNLS: jax.Array | None,
    block: int,
) -> Case:
    """The case of a call with these arguments."""
    return Case(q_BLNH.shape, k_BSKH.shape, q_BLNH.dtype, mask, window, soft_cap, bias_BNLS is not None, block)
