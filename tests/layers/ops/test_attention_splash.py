"""The splash kernel, interpreted, against a dense formula in float32: every mask, forward and all gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.layers.masks import NO_WINDOW, Mask, make_mask
from t5x_scale.layers.ops.attention.splash import attention_splash

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
B, N, H = 2, 4, 32
SCALE = 0.3


def packed_rows(length, rng):
    """Segments 1, 2, ... of random lengths, padding behind, and a prefix of random length in each."""
    segments, prefix = np.zeros((2, B, length), np.int32)
    for b in range(B):
        ends = np.sort(rng.choice(np.arange(1, length), 4, replace=False))
        for number, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), 1):
            segments[b, begin:end] = number
            prefix[b, begin : begin + rng.integers(0, end - begin + 1)] = 1
    return segments, prefix


def dense(length, segments, prefix, windows):
    """Which keys are seen, from the definition: bool [B, L, L]."""
    i, j = np.arange(length)[:, None], np.arange(length)
    together = np.ones((B, length, length), bool) if segments is None else segments[:, :, None] == segments[:, None]
    seen = np.broadcast_to(j <= i, together.shape)
    if prefix is not None:
        # A later key is seen up to the last position of the prefix of the query's segment.
        last = np.where(together & (prefix[:, None] != 0), j, -1).max(-1)
        seen = seen | (j <= last[:, :, None])
    for window in windows:
        if window is not None:
            seen = seen & (j > i - window)
    return seen & together


def naive(q, k, v, seen, soft_cap):
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    logits = jnp.einsum("bind,bjnd->bnij", q, k, precision="highest") * SCALE
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    weights = jax.nn.softmax(jnp.where(seen[:, None], logits, -jnp.inf), axis=-1)
    return jnp.einsum("bnij,bjnd->bind", weights, v, precision="highest")


def run(function, d_out, *args):
    """Output and gradients."""
    out, pull = jax.vjp(function, *args)
    return out, *pull(d_out)


def draw(length, kv_heads, dtype, rng, head_dim=H):
    shapes = [(B, length, heads, head_dim) for heads in (N, N, kv_heads, kv_heads)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def both(length, kv_heads, *, packed=False, prefixed=False, window=None, layers=None, soft_cap=None, dtype=np.float32):
    """Output, dq, dk and dv of the kernel with blocks of 128, and of the formula in float32 on the same values."""
    rng = np.random.default_rng(length + kv_heads)
    segments, prefix = packed_rows(length, rng)
    segments, prefix = segments if packed else None, prefix if prefixed else None
    seen = dense(length, segments, prefix, (window, layers))
    values = draw(length, kv_heads, dtype, rng)

    def kernel(layers, q, k, v):
        made = make_mask(segments, prefix)
        mask = Mask(made.query_index, made.last_visible, segments, segments, layers)
        return attention_splash(q, k, v, mask, scale=SCALE, window=window, soft_cap=soft_cap, block=128)

    got = jax.jit(lambda layers, *a: run(functools.partial(kernel, layers), *a), compiler_options=FAST)(layers, *values)
    expected = run(lambda *a: naive(*a, seen, soft_cap), *(x.astype(np.float32) for x in values))
    return got, expected


CASES = {
    "causal, multi-query": (256, 1, {}),
    "causal, multi-head, odd length": (131, 4, {}),
    "causal, shorter than a register": (5, 2, {}),
    "causal, grouped, cap, odd length": (300, 2, {"soft_cap": 2.0}),
    "packed, grouped": (384, 2, {"packed": True}),
    "window, multi-query": (512, 1, {"window": 100}),
    "window of one key": (256, 2, {"window": 1}),
    "packed window, odd length": (301, 4, {"packed": True, "window": 130}),
    "layer's window": (256, 2, {"layers": 70}),
    "layer's window of all keys, odd length": (257, 1, {"layers": NO_WINDOW}),
    "prefix": (256, 4, {"prefixed": True}),
    "packed prefix, multi-query": (384, 1, {"packed": True, "prefixed": True}),
    "packed prefix, grouped, odd length": (290, 2, {"packed": True, "prefixed": True}),
    "packed prefix window, cap": (384, 2, {"packed": True, "prefixed": True, "window": 40, "soft_cap": 1.5}),
    "packed prefix, both windows, odd": (300, 1, {"packed": True, "prefixed": True, "window": 90, "layers": 60}),
}


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case):
    length, kv_heads, options = CASES[case]
    got, expected = both(length, kv_heads, **options)
    for name, x, y in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=name)
