"""Attention on NVIDIA GPUs by cuDNN's flash attention, as JAX offers it: causal rows that are not packed.

What a mask hides beyond that, cuDNN knows only as an array [B, 1, L, L] that is added to the logits; such cases are
left to the other implementations.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from t5x_scale.layers.masks import Mask
from t5x_scale.layers.ops.attention.case import Case
from t5x_scale.layers.ops.attention.sharded import Vectors, has_split_length, over_mesh, to_vectors
from t5x_scale.partitioning.shardings import current_platform

# Of `jax.nn.dot_product_attention`.
BACKEND = "cudnn"
# Hopper's limit, in steps of 8; on older GPUs JAX refuses what is above 128 in words of its own.
LARGEST_HEAD = 256

_FORWARD = "dot_product_attention_fwd"


def unsupported(case: Case) -> str | None:
    """Why cuDNN does not cover `case`."""
    if current_platform() != "gpu":
        return f"cuDNN is for GPUs, and the platform is {current_platform()}"
    if jnp.dtype(case.dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        return f"it computes in bfloat16 and float16, not in {jnp.dtype(case.dtype).name}"
    if case.is_cached:
        return "queries stand at places in a cache"
    if case.mask.query_segments is not None or case.mask.last_visible is not None:
        return "rows are packed or begin with a bidirectional prefix"
    if case.mask.key_index is not None:
        return "the length is stored in another order"
    if case.window is not None or case.mask.window is not None:
        return "there is a window"
    if case.soft_cap is not None or case.has_bias:
        return "logits are capped, or something is added to them"
    if case.query_shape[-1] % 8 or case.query_shape[-1] > LARGEST_HEAD:
        return f"heads of size {case.query_shape[-1]}: it takes multiples of 8 up to {LARGEST_HEAD}"
    if has_split_length():
        return "each device has a part of every sequence only (the mesh axis context)"
    return None


def attention_cudnn(
    q_BLNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, *, scale: float, **_: Any
) -> jax.Array:
    """`attention` for the cases that `unsupported` lets through, [B, L, N, H]."""
    # JAX asks the GPU of this process which cuDNN it has. Without one a program is traced only for its shapes.
    backend = BACKEND if jax.default_backend() == "gpu" else "xla"

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, _: Vectors) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, implementation=backend)

    return over_mesh(attend, q_BLNH, k_BSKH, v_BSKH, to_vectors(mask, q_BLNH.shape[0]))


def is_saveable(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy for `jax.checkpoint`: keep what the forward kernel gives, so that the backward pass does not run it.

    JAX hides the kernel's output and log-sum-exp inside of its own gradient rule, where they have no names.
    """
    return primitive.name.startswith(_FORWARD)
