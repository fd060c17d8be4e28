"""Scaled dot-product attention: the one function behind which kernels live."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from t5x_scale.layers.masks import Mask

# Large enough to vanish in a softmax, small enough that adding two of them stays finite in float32.
MASKED = -1e30


def attention(
    q_BLNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    bias_BNLS: jax.Array | None = None,
) -> jax.Array:
    """`softmax(scale * q k^T + bias, over the keys the mask allows) v`, softmax in float32.

    Args:
      q_BLNH: queries, N heads.
      k_BSKH, v_BSKH: keys and values, K heads; N must be a multiple of K, and query head n reads kv head
        n // (N // K).
      mask: which keys each query sees; a query that sees none gets the mean of the values (its weight in the
        loss is 0).
      scale: multiplies the logits.
      window: each query sees at most this many keys up to and including its own.
      soft_cap: logits become `soft_cap * tanh(logits / soft_cap)` (Gemma 2).
      bias_BNLS: added to the scaled logits, for relative positions.

    Returns:
      [B, L, N, H] in the dtype of `q_BLNH`.
    """
    B, L, N, H = q_BLNH.shape
    S, K = k_BSKH.shape[1:3]
    if N % K:
        raise ValueError(f"attention: {N} query heads do not divide over {K} kv heads")
    G = N // K
    # Scaling the queries costs L x H products instead of L x S.
    q_BLKGH = (q_BLNH * scale).astype(q_BLNH.dtype).reshape(B, L, K, G, H)
    logits = jnp.einsum("BLKGH,BSKH->BKGLS", q_BLKGH, k_BSKH, preferred_element_type=jnp.float32)
    if bias_BNLS is not None:
        logits += bias_BNLS.astype(jnp.float32).reshape(B, K, G, L, S)
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    allowed = mask.allowed(L, S, window)
    logits = jnp.where(allowed[:, None, None], logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BSKH.dtype)
    out = jnp.einsum("BKGLS,BSKH->BLKGH", weights, v_BSKH)
    return out.reshape(B, L, N, H)
