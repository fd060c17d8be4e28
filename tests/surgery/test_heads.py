"""Heads: every function-preserving arrangement, the ones that do not exist, and grouped-query attention from means."""

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.surgery.heads import MergeKvHeads, WidenHeads, plan_heads

ATTENTION = "decoder/layers/self_attention/"


def make_weights(heads, kv_heads, family="qwen", **options):
    settings = toy.FAMILIES[family].with_config(num_heads=heads, num_kv_heads=kv_heads)
    return toy.make_weights(settings, **options)


def check_function_stays(surgery, weights):
    wide = surgery(weights)
    assert toy.shapes(wide.leaves) == {path: shape for path, (shape, _) in toy.tensors(wide.architecture).items()}
    before = toy.logits(weights)
    np.testing.assert_allclose(toy.logits(wide), before, atol=1e-5 * np.abs(before).max(), rtol=0)
    return wide


@pytest.mark.parametrize(
    ("family", "before", "after"),
    [
        ("qwen", (4, 1), (4, 2)),  # multi-query to grouped-query
        ("gemma", (4, 2), (4, 4)),  # grouped-query to multi-head
        ("qwen", (4, 2), (6, 2)),  # more queries a kv head
        ("neox", (4, 2), (8, 8)),  # both
        ("qwen", (4, 4), (6, 6)),  # multi-head
        ("qwen", (4, 2), (6, 3)),  # another group behind the others
        ("palm", (4, 1), (5, 5)),  # multi-query to multi-head and one more
    ],
)
def test_more_heads_change_nothing(family, before, after):
    wide = check_function_stays(WidenHeads(*after), make_weights(*before, family))
    assert (wide.architecture.config.num_heads, wide.architecture.config.num_kv_heads) == after


def test_kv_heads_follow_where_none_are_asked_for():
    assert WidenHeads(8)(make_weights(4, 4)).architecture.config.num_kv_heads == 8
    assert WidenHeads(8)(make_weights(4, 2)).architecture.config.num_kv_heads == 2


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 24), st.integers(1, 12))
def test_every_old_query_head_reads_a_copy_of_its_kv_head(kv_heads, group, new_heads, new_kv_heads):
    heads = kv_heads * group
    try:
        plan = plan_heads(heads, kv_heads, new_heads, new_kv_heads)
    except UserError:
        possible = new_kv_heads % kv_heads == 0 or new_heads == group * new_kv_heads
        larger = new_heads >= heads and new_kv_heads >= kv_heads and (new_heads, new_kv_heads) != (heads, kv_heads)
        assert not (possible and larger and new_heads % new_kv_heads == 0)
        return
    assert (len(plan.queries), len(plan.kv_heads)) == (new_heads, new_kv_heads)
    assert sorted(plan.queries) == list(range(new_heads))
    new_group = new_heads // new_kv_heads
    for place, query in enumerate(plan.queries):
        source = query if query < heads else plan.query_sources[query - heads]
        kv_head = plan.kv_heads[place // new_group]
        read = kv_head if kv_head < kv_heads else plan.kv_sources[kv_head - kv_heads]
        # New queries too are copies of queries that read the same keys.
        assert read == source // group


def test_new_heads_are_copies_without_output():
    wide = toy.read(WidenHeads(6, 2)(make_weights(4, 2)).leaves)
    before = toy.read(make_weights(4, 2).leaves)
    query, out = f"{ATTENTION}query/kernel", f"{ATTENTION}out/kernel"
    np.testing.assert_array_equal(wide[query], before[query][:, :, [0, 1, 0, 2, 3, 2]])
    np.testing.assert_array_equal(wide[out][:, [0, 1, 3, 4]], before[out])
    assert not wide[out][:, [2, 5]].any()


def test_copies_of_kv_heads_share_the_gradient_of_one():
    weights = make_weights(4, 2)
    wide = WidenHeads(4, 4)(toy.with_gradients(weights))
    expected = toy.gradients(wide)
    for path, leaf in wide.moments["opt_state/0/mu"].items():
        found, true = leaf.array.read(), expected[path]
        if "kv_heads" in leaf.axes:
            # Which copy gets what is not known beforehand; the sum is.
            axis = leaf.axes.index("kv_heads")
            shape = (*found.shape[:axis], 2, 2, *found.shape[axis + 1 :])
            found, true = found.reshape(shape).sum(axis + 1), true.reshape(shape).sum(axis + 1)
        np.testing.assert_allclose(found, true, rtol=1e-3, atol=1e-3, err_msg=path)


@settings(deadline=None)
@given(st.sampled_from([(4, 2), (4, 1), (6, 3), (6, 2), (6, 1)]))
def test_kv_heads_become_the_mean_of_neighbours(sizes):
    before, after = sizes
    weights = make_weights(12, before, moments=["opt_state/0/mu", "opt_state/0/nu"])
    merged = MergeKvHeads(after, optimizer="map")(weights)
    assert merged.architecture.config.num_kv_heads == after
    for path, axis in ((f"{ATTENTION}key/kernel", 2), (f"{ATTENTION}value/bias", 1)):
        for found, given_, mean in (
            (merged.leaves, weights.leaves, True),
            (merged.moments["opt_state/0/mu"], weights.moments["opt_state/0/mu"], False),
            (merged.moments["opt_state/0/nu"], weights.moments["opt_state/0/nu"], False),
        ):
            values = given_[path].array.read()
            parts = values.reshape(*values.shape[:axis], after, before // after, *values.shape[axis + 1 :])
            expected = parts.mean(axis + 1) if mean else parts.sum(axis + 1)
            np.testing.assert_allclose(found[path].array.read(), expected, rtol=1e-6, atol=1e-6)
    assert merged.leaves[f"{ATTENTION}query/kernel"].origin.kind == "restored"
    expected = {path: shape for path, (shape, _) in toy.tensors(merged.architecture).items()}
    assert toy.shapes(merged.leaves) == expected


@given(st.sampled_from([(1, 2), (1, 3), (2, 4), (2, 6)]))
@settings(deadline=None)
def test_repeated_kv_heads_merge_back(sizes):
    before, after = sizes
    weights = make_weights(12, before)
    back = MergeKvHeads(before)(WidenHeads(12, after)(weights))
    for path, values in toy.read(weights.leaves).items():
        np.testing.assert_allclose(toy.read(back.leaves)[path], values, rtol=2e-7, atol=0)


def test_merging_resets_the_optimiser_unless_asked():
    weights = make_weights(4, 4, moments=["opt_state/0/mu"])
    assert not MergeKvHeads(2)(weights).moments
    assert WidenHeads(8)(weights).moments


@pytest.mark.parametrize(
    ("surgery", "message"),
    [
        (lambda: WidenHeads(4, 2), "from 4 heads on 2 kv heads to 4 on 2 is no widening"),
        (lambda: WidenHeads(2, 2), "to 2 on 2 is no widening; MergeKvHeads"),
        (lambda: WidenHeads(7, 2), "7 is not a multiple of 2"),
        (lambda: WidenHeads(9, 3), "neither does every kv head keep 2 query heads"),
        (lambda: WidenHeads(0), "WidenHeads.num_heads is 0"),
        (lambda: MergeKvHeads(2), "the model has as many already"),
        (lambda: MergeKvHeads(3), "which does not divide the number of kv heads 2"),
    ],
)
def test_what_does_not_fit_is_refused(surgery, message):
    with pytest.raises(UserError, match=message):
        surgery()(make_weights(4, 2))
