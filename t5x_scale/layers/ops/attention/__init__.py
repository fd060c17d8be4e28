"""Scaled dot-product attention: the one function behind which kernels live.

An implementation is a module with two functions: `unsupported(case)` says why it does not cover a case, or None, and
the other takes the arguments of `attention`. `IMPLEMENTATIONS` is the one place that names them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.layers.masks import Mask
from t5x_scale.layers.ops.attention import cudnn, reference, ring, splash
from t5x_scale.layers.ops.attention.case import SAVED as SAVED
from t5x_scale.layers.ops.attention.case import Case, make_case
from t5x_scale.layers.ops.attention.notices import warn_once
from t5x_scale.layers.ops.attention.splash import BLOCK
from t5x_scale.partitioning.shardings import current_platform


class Implementation(NamedTuple):
    """One way to compute attention.

    Attributes:
      unsupported: why a case is not covered, in words that follow "because", or None.
      attend: the arguments of `attention`.
      platforms: where `auto` takes it if it covers the case.
      has_blocks: whether `attend` takes `block`, too.
    """

    unsupported: Callable[[Case], str | None]
    attend: Callable[..., jax.Array]
    platforms: tuple[str, ...] = ()
    has_blocks: bool = False


# `auto` takes the first that is made for the platform and covers the case, else the reference.
IMPLEMENTATIONS = {
    "ring": Implementation(ring.unsupported, ring.attention_ring, ("cpu", "gpu", "tpu"), has_blocks=True),
    "splash": Implementation(splash.unsupported, splash.attention_splash, ("tpu",), has_blocks=True),
    "cudnn": Implementation(cudnn.unsupported, cudnn.attention_cudnn, ("gpu",)),
    "reference": Implementation(reference.unsupported, reference.attention_reference, ("cpu", "gpu", "tpu")),
}


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
    implementation: str = "auto",
    block: int = BLOCK,
) -> jax.Array:
    """`softmax(scale * q k^T + bias, over the keys the mask allows) v`, softmax in float32.

    Args:
      q_BLNH: queries, N heads.
      k_BSKH, v_BSKH: keys and values, K heads; N must be a multiple of K, and query head n reads kv head
        n // (N // K).
      mask: which keys each query sees; in the reference a query that sees none gets the mean of the values (its weight
        in the loss is 0).
      scale: multiplies the logits.
      window: each query sees at most this many keys up to and including its own.
      soft_cap: logits become `soft_cap * tanh(logits / soft_cap)` (Gemma 2).
      bias_BNLS: added to the scaled logits, for relative positions.
      implementation: a key of `IMPLEMENTATIONS`, or `auto`: the fastest on the platform for which the program is
        traced (`current_platform`) that covers the case.
      block: queries and keys of a block of the splash kernel, in a ring too, at most; a multiple of 128.

    Returns:
      [B, L, N, H] in the dtype of `q_BLNH`.

    Raises:
      UserError: the named implementation does not exist, or does not cover the case; or a block cannot be.
    """
    splash.check_block(block)
    N, K = q_BLNH.shape[2], k_BSKH.shape[2]
    if N % K:
        raise ValueError(f"attention: {N} query heads do not divide over {K} kv heads")
    case = make_case(q_BLNH, k_BSKH, mask, window, soft_cap, bias_BNLS, block)
    options = {"scale": scale, "window": window, "soft_cap": soft_cap, "bias_BNLS": bias_BNLS}
    chosen = IMPLEMENTATIONS[choose(case, implementation)]
    if chosen.has_blocks:
        options["block"] = block
    return chosen.attend(q_BLNH, k_BSKH, v_BSKH, mask, **options)


def check_implementation(name: str) -> None:
    """Checks a name where nothing is known yet of the machine and of what is to be covered.

    Raises:
      UserError: it is neither `auto` nor a key of `IMPLEMENTATIONS`.
    """
    known = ("auto", *IMPLEMENTATIONS)
    if name not in known:
        hint = did_you_mean(str(name), known) or f"; known are {', '.join(known)}"
        raise UserError(f"Attention.implementation: unknown implementation {name!r}{hint}")


def choose(case: Case, implementation: str = "auto") -> str:
    """The key of `IMPLEMENTATIONS` that computes `case`.

    Raises:
      UserError: the named implementation does not exist, or does not cover the case.
    """
    check_implementation(implementation)
    if implementation == "auto":
        return _choose_fastest(case)
    reason = IMPLEMENTATIONS[implementation].unsupported(case)
    if reason is not None:
        raise UserError(f"Attention.implementation = '{implementation}' does not cover this: {reason}; 'auto' does")
    return implementation


def _choose_fastest(case: Case) -> str:
    """What `auto` takes on this platform; says so where that is the reference though the platform has a kernel."""
    platform = current_platform()
    made_for_it = [name for name, one in IMPLEMENTATIONS.items() if platform in one.platforms]
    reasons = {name: IMPLEMENTATIONS[name].unsupported(case) for name in made_for_it}
    chosen = next(name for name, reason in reasons.items() if reason is None)
    kernel = next((name for name in made_for_it if IMPLEMENTATIONS[name].platforms == (platform,)), None)
    # Cached keys and biases are the reference's by nature: no other choice of sizes would change that.
    if chosen == "reference" and kernel is not None and not (case.is_cached or case.has_bias):
        warn_once(f"attention forms all logits, batch x heads x length x length: '{kernel}' cannot: {reasons[kernel]}")
    return chosen
