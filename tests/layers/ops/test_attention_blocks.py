"""The work plan of a blocked kernel against the dense mask: what is seen is visited once, what is dead is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.layers.masks import make_mask
from t5x_scale.layers.ops.attention import blocks
from t5x_scale.layers.ops.attention.blocks import Span, share_of_live_blocks

plan_by_keys, plan_by_queries = (
    jax.jit(plan, static_argnums=(1, 2, 3)) for plan in (blocks.plan_by_keys, blocks.plan_by_queries)
)

B, L = 2, 24
INDEX = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))


def packed_segments(rng):
    """Rising ids."""
    return np.sort(rng.integers(1, 5, (B, L))).astype(np.int32)


def visits(plan, by_keys):
    """(row, query block, key block, fetched, live) of every visit, in the order of the kernel; counted within rows."""
    fetch, live = (np.asarray(x[0].T if by_keys else x[0]) for x in plan)
    blocks = fetch.shape[0] // B
    for outer, (fetched, alive) in enumerate(zip(fetch, live, strict=True)):
        for step, (one, is_live) in enumerate(zip(fetched, alive, strict=True)):
            yield outer // blocks, outer % blocks, step, one, is_live


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(1, L),
    st.sampled_from([(4, 8), (8, 4), (12, 12)]),
)
def test_plans_visit_each_block_that_is_seen_once(seed, packed, prefixed, window, sizes):
    rng = np.random.default_rng(seed)
    segments = packed_segments(rng) if packed else None
    prefix = rng.integers(0, 2, (B, L)) if prefixed else None
    mask = make_mask(*(None if x is None else jnp.asarray(x) for x in (segments, prefix)))
    seen = np.broadcast_to(mask.allowed(L, L, window), (B, L, L))
    first = INDEX * 0 if window is None else np.maximum(INDEX - window + 1, 0)
    span = Span(jnp.asarray(first), jnp.asarray(INDEX) if prefix is None else mask.last_visible, mask.query_segments)
    reach = None if prefixed else window
    block_q, block_kv = sizes
    wanted = seen.reshape(B, L // block_q, block_q, L // block_kv, block_kv).any((2, 4))
    for by_keys, make in ((False, plan_by_queries), (True, plan_by_keys)):
        plan = make(span, block_q, block_kv, reach)
        inner_blocks = L // (block_q if by_keys else block_kv)
        visited = np.zeros_like(wanted, dtype=int)
        for row, outer, _, fetched, is_live in visits(plan, by_keys):
            assert 0 <= fetched < B * inner_blocks
            if is_live:
                assert fetched // inner_blocks == row
                inner = fetched % inner_blocks
                visited[(row, inner, outer) if by_keys else (row, outer, inner)] += 1
        assert visited.max() == 1
        assert (visited >= wanted).all()
        if not prefixed:
            # With rising ids and a band of keys the ranges that are compared are exact.
            np.testing.assert_array_equal(visited, wanted)


def test_what_is_fetched_beside_dead_blocks_is_what_comes_next():
    span = Span(jnp.asarray(INDEX[:1] * 0), jnp.asarray(INDEX[:1]), None)
    fetch, live = plan_by_queries(span, 8, 8, None)
    np.testing.assert_array_equal(live[0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(fetch[0], [[0, 0, 0], [0, 1, 0], [0, 1, 2]])
    fetch, live = plan_by_keys(span, 8, 8, None)
    np.testing.assert_array_equal(live[0].T, [[1, 1, 1], [0, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(fetch[0].T, [[0, 1, 2], [1, 1, 2], [2, 2, 2]])


def test_a_window_narrows_the_walk():
    """A query block of 4 with a window of 5 reaches 3 blocks, whatever the length."""
    index = jnp.arange(64, dtype=jnp.int32)[None]
    span = Span(jnp.maximum(index - 4, 0), index, None)
    assert plan_by_queries(span, 4, 4, 5).live.shape == (1, 16, 2)
    assert plan_by_queries(span, 4, 4, 6).live.shape == (1, 16, 3)
    assert plan_by_keys(span, 4, 4, 6).live.shape == (1, 3, 16)
    assert plan_by_queries(span, 4, 4, None).live.shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("length", "block", "share"), [(2048, 512, 10 / 16), (2048, 256, 36 / 64), (8192, 512, 136 / 256)]
)
def test_causal_attention_costs_about_half(length, block, share):
    index = jnp.arange(length, dtype=jnp.int32)[None]
    assert share_of_live_blocks(Span(index * 0, index, None), block, block) == pytest.approx(share)
