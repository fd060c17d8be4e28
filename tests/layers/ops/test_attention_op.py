"""The attention op against a naive dense formula, forward and backward, for every kind of mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from t5x_scale.layers.masks import Mask, make_mask
from t5x_scale.layers.ops.attention import attention

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
B, L, N, H = 2, 7, 4, 6
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 1, 2, 2, 2, 2, 2]], np.int32)
PREFIX = np.array([[1, 1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0, 0]], np.int32)


def visible(segments, prefix, window, b, i, j):
    """Whether query i sees key j, from the words of the definition."""
    if segments is not None and segments[b, i] != segments[b, j]:
        return False
    if window is not None and j <= i - window:
        return False
    if j <= i:
        return True
    # A later key is seen only up to the end of the bidirectional prefix of the query's own segment.
    return prefix is not None and any(
        prefix[b, p] and p >= j and (segments is None or segments[b, p] == segments[b, i])
        for p in range(prefix.shape[1])
    )


def dense(segments, prefix, window, length=L):
    triples = [(b, i, j) for b in range(B) for i in range(length) for j in range(length)]
    return np.array([visible(segments, prefix, window, *t) for t in triples]).reshape(B, length, length)


def naive(q, k, v, bias, allowed, scale, soft_cap):
    """Softmax attention with the kv heads repeated for their query heads, in the plainest form."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    logits = jnp.einsum("bind,bjnd->bnij", q, k) * scale
    logits = logits if bias is None else logits + bias
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    logits = jnp.where(allowed[:, None], logits, -jnp.inf)
    return jnp.einsum("bnij,bjnd->bind", jax.nn.softmax(logits, axis=-1), v)


def draw(kv_heads, with_bias, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(B, L, N, H), (B, L, kv_heads, H), (B, L, kv_heads, H), (B, N, L, L), (B, L, N, H)]
    q, k, v, bias, d_out = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    return q, k, v, bias if with_bias else None, d_out


CASES = {
    # name: kv heads, segments, prefix, window, soft cap, bias
    "causal, multi-query": (1, False, False, None, None, False),
    "causal, multi-head, cap": (4, False, False, None, 2.0, False),
    "packed, grouped, bias": (2, True, False, None, None, True),
    "window, grouped": (2, False, False, 3, None, False),
    "packed window, cap, bias": (1, True, False, 2, 1.5, True),
    "prefix": (4, False, True, None, None, False),
    "packed prefix, grouped": (2, True, True, None, None, False),
    "packed prefix window, cap, bias": (2, True, True, 3, 3.0, True),
}


def both(case, dtype=np.float32):
    """Output and gradients of the op and of the naive formula (in float32 on the same values)."""
    kv_heads, packed, prefixed, window, soft_cap, with_bias = CASES[case]
    segments, prefix = SEGMENTS if packed else None, PREFIX if prefixed else None
    q, k, v, bias, d_out = draw(kv_heads, with_bias, dtype)
    allowed = dense(segments, prefix, window)
    options = {"scale": 0.37, "soft_cap": soft_cap}

    def op(q, k, v, bias):
        return attention(q, k, v, make_mask(segments, prefix), window=window, bias_BNLS=bias, **options)

    def reference(q, k, v, bias):
        return naive(q, k, v, bias, allowed, 0.37, soft_cap)

    def run(function, d_out, *args):
        out, pull = jax.vjp(function, *args)
        return out, *pull(d_out)

    got = jax.jit(lambda d, *a: run(op, d, *a), compiler_options=FAST)(d_out, q, k, v, bias)
    wide = [None if x is None else x.astype(np.float32) for x in (d_out, q, k, v, bias)]
    expected = jax.jit(lambda d, *a: run(reference, d, *a), compiler_options=FAST)(*wide)
    return got, expected


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case):
    got, expected = both(case)
    assert (got[4] is None) == (expected[4] is None)
    for name, x, y in zip(("out", "dq", "dk", "dv", "dbias"), got, expected, strict=True):
        if x is not None:
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=3e-6, err_msg=name)


def test_bfloat16_is_as_near_as_its_rounding():
    got, expected = both("packed prefix, grouped", jnp.bfloat16)
    for name, x, y in zip(("out", "dq", "dk", "dv"), got, expected, strict=False):
        assert x.dtype == jnp.bfloat16
        # Weights, logit gradients, products and results are each rounded to 8 bits (half an ulp: 2^-9 of the value),
        # and a sum keeps the error of its largest terms: 4 roundings of the largest entry bound it.
        bound = 4 * 2**-8 * np.abs(y).max()
        assert np.abs(np.asarray(x, np.float32) - y).max() < bound, name


def test_large_logits_stay_finite():
    q, k, v, _, d_out = draw(2, False)

    def run(d_out, *args):
        out, pull = jax.vjp(lambda *a: attention(*a, make_mask(), scale=1.0), *args)
        return out, *pull(d_out)

    results = jax.jit(run, compiler_options=FAST)(d_out, 300 * q, 300 * k, v)
    assert all(np.isfinite(x).all() for x in results)


def test_cached_decoding():
    """Two queries at given slots of a longer cache; -1 is padding, which sees nothing and disturbs nothing."""
    q, k, v, _, _ = draw(2, False)
    slots = np.array([[4, 5], [2, -1]], np.int32)
    op = jax.jit(lambda q, k, v, slots: attention(q, k, v, Mask(query_index=slots), scale=0.5), compiler_options=FAST)
    got = op(q[:, :2], k, v, slots)
    for b, i in [(0, 0), (0, 1), (1, 0)]:
        seen = slots[b, i] + 1
        allowed = np.ones((1, 1, seen), bool)
        expected = naive(q[b : b + 1, i : i + 1], k[b : b + 1, :seen], v[b : b + 1, :seen], None, allowed, 0.5, None)
        np.testing.assert_allclose(got[b, i], expected[0, 0], rtol=1e-5, atol=1e-6)
    # The documented answer where nothing is seen: the mean of the values.
    mean = np.repeat(np.asarray(v[1]).mean(0), N // 2, axis=0)
    np.testing.assert_allclose(got[1, 1], mean, rtol=1e-5, atol=1e-6)


def test_heads_must_divide():
    q, k, v, _, _ = draw(3, False)
    with pytest.raises(ValueError, match="4 query heads do not divide over 3 kv heads"):
        attention(q, k, v, make_mask(), scale=1.0)


ids = hnp.arrays(np.int32, (B, L), elements=st.integers(0, 2))


@settings(max_examples=60, deadline=None)
@given(st.none() | ids, st.none() | ids.map(lambda x: x % 2), st.none() | st.integers(1, L))
def test_make_mask_is_its_definition(segments, prefix, window):
    """For arbitrary ids, packed or not."""
    mask = make_mask(*(None if x is None else jnp.asarray(x) for x in (segments, prefix)))
    allowed = np.broadcast_to(mask.allowed(L, L, window), (B, L, L))
    np.testing.assert_array_equal(allowed, dense(segments, prefix, window))
