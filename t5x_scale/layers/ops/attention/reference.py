"""The reference: attention in plain array operations, for every case and every platform."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5x_scale.layers.masks import Mask
from t5x_scale.layers.ops.attention.case import SAVED, Case

# Large enough to vanish in a softmax, small enough that adding two of them stays finite in float32.
MASKED = -1e30

# Products of [B, K, rows, H] by head: with the keys, with the values, and over the rows.
_WITH_KEYS = (((3,), (3,)), ((0, 1), (0, 1)))
_WITH_VALUES = (((3,), (2,)), ((0, 1), (0, 1)))
_OVER_ROWS = (((2,), (2,)), ((0, 1), (0, 1)))


class _Static(NamedTuple):
    length: int
    window: int | None
    soft_cap: float | None


def unsupported(case: Case) -> str | None:
    """None: the reference covers every case."""
    del case


def attention_reference(
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
    """As `attention`. The logits are formed, [B, N, L, S] in float32, in each of the passes.

    The backward pass computes the weights again from the queries, the keys and log Z, as flash attention does
    (Dao et al. 2022), so that no [L, S] array is kept between the passes.
    """
    B, L, N, H = q_BLNH.shape
    S, K = k_BSKH.shape[1:3]
    # The query heads of one kv head become rows of one product: [B, K, G * L, H].
    q = jnp.transpose((q_BLNH * scale).astype(q_BLNH.dtype), (0, 2, 1, 3)).reshape(B, K, -1, H)
    k, v = (jnp.transpose(x, (0, 2, 1, 3)) for x in (k_BSKH, v_BSKH))
    bias = None if bias_BNLS is None else bias_BNLS.reshape(B, K, -1, S)
    out = _attend(_Static(L, window, soft_cap), q, k, v, bias, mask)
    return jnp.transpose(out.reshape(B, N, L, H), (0, 2, 1, 3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, q, k, v, bias, mask):
    return _attend_forward(static, q, k, v, bias, mask)[0]


def _attend_forward(static, q, k, v, bias, mask):
    logits = _logits(static, q, k, bias, mask)[0]
    largest = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # Dividing [rows, H] afterwards is cheaper than dividing the weights.
    out = jax.lax.dot_general(weights.astype(v.dtype), v, _WITH_VALUES, preferred_element_type=jnp.float32)
    out = checkpoint_name((out / total).astype(q.dtype), SAVED)
    return out, (q, k, v, bias, mask, out, checkpoint_name(largest + jnp.log(total), SAVED))


def _attend_backward(static, saved, d_out):
    q, k, v, bias, mask, out, log_z = saved
    logits, slope = _logits(static, q, k, bias, mask)
    weights = jnp.exp(logits - log_z)
    d_v = jax.lax.dot_general(weights.astype(v.dtype), d_out, _OVER_ROWS)
    d_weights = jax.lax.dot_general(d_out, v, _WITH_KEYS, preferred_element_type=jnp.float32)
    mean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_logits = weights * (d_weights - mean)
    if slope is not None:
        d_logits = d_logits * slope
    narrow = d_logits.astype(q.dtype)
    d_q = jax.lax.dot_general(narrow, k, _WITH_VALUES)
    d_k = jax.lax.dot_general(narrow, q, _OVER_ROWS)
    d_bias = None if bias is None else d_logits.astype(bias.dtype)
    return d_q, d_k, d_v, d_bias, None


_attend.defvjp(_attend_forward, _attend_backward)


def _logits(static, q, k, bias, mask):
    """Masked logits [B, K, G * L, S] in float32, and the slope of the soft cap or None."""
    logits = jax.lax.dot_general(q, k, _WITH_KEYS, preferred_element_type=jnp.float32)
    if bias is not None:
        logits += bias.astype(jnp.float32)
    slope = None
    if static.soft_cap is not None:
        capped = jnp.tanh(logits / static.soft_cap)
        logits, slope = static.soft_cap * capped, 1.0 - jnp.square(capped)
    B, K, rows, S = logits.shape
    allowed = mask.allowed(static.length, S, static.window)[:, None, None]
    by_head = logits.reshape(B, K, rows // static.length, static.length, S)
    return jnp.where(allowed, by_head, MASKED).reshape(logits.shape), slope
