"""Positions: other frequencies, longer tables, and everything else left alone."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.models.architecture import RopeScalingValues
from t5x_scale.surgery.positions import TABLE, ChangeRopeBase, ResizePositions, ScaleRope, stretch

LLAMA = dataclasses.replace(toy.FAMILIES["llama"], max_length=128)
GPT2 = toy.FAMILIES["gpt2"]
SLOTS = ["opt_state/0/mu", "opt_state/0/nu"]


@pytest.mark.parametrize(
    ("surgery", "expected"),
    [
        (ChangeRopeBase(5e5), {"rope_base": 5e5, "max_length": 128}),
        (ChangeRopeBase(1000000, max_length=512), {"rope_base": 1e6, "max_length": 512}),
        (ScaleRope("linear", 4.0), {"rope_scaling": RopeScalingValues("linear", 4.0, 128), "max_length": 512}),
        (ScaleRope("yarn", 2.0, 64), {"rope_scaling": RopeScalingValues("yarn", 2.0, 64), "max_length": 128}),
        (
            ScaleRope("llama3", 8.0, low_frequency_factor=2.0),
            {
                "rope_scaling": RopeScalingValues("llama3", 8.0, 128, low_frequency_factor=2.0),
                "max_length": 1024,
            },
        ),
    ],
)
def test_rope_changes_in_the_architecture_alone(surgery, expected):
    weights = toy.make_weights(LLAMA, moments=SLOTS)
    changed = surgery(weights)
    assert changed.architecture == dataclasses.replace(LLAMA, **expected)
    assert changed.leaves == weights.leaves
    assert {leaf.origin.kind for leaf in changed.leaves.values()} == {"restored"}
    assert changed.moments == weights.moments
    assert changed.recipe[-1]["surgery"] == type(surgery).__name__
    assert dataclasses.replace(surgery, optimizer="keep")(weights).moments == weights.moments
    assert np.abs(toy.logits(changed) - toy.logits(weights)).max() > 1e-4


def test_linear_scaling_is_that_of_positions():
    """Every fourth position of the scaled model stands where every position of the other does."""
    weights = toy.make_weights(LLAMA)
    scaled = ScaleRope("linear", 4.0)(weights)
    assert np.abs(toy.logits(scaled) - toy.logits(weights))[:, 0].max() < 1e-5
    assert np.abs(toy.logits(scaled) - toy.logits(weights))[:, 1:].max() > 1e-3


def test_a_scaling_is_replaced_only_when_asked():
    once = ScaleRope("llama3", 8.0)(toy.make_weights(LLAMA))
    with pytest.raises(UserError, match="has a llama3 scaling of RoPE by 8 already"):
        ScaleRope("yarn", 4.0)(once)
    twice = ScaleRope("yarn", 16.0, replace=True)(once)
    assert twice.architecture.rope_scaling == RopeScalingValues("yarn", 16.0, 128)
    assert twice.architecture.max_length == 2048


def test_a_longer_table_repeats_the_shorter():
    weights = toy.make_weights(GPT2, moments=SLOTS)
    longer = ResizePositions(40)(weights)
    before = weights.leaves[TABLE].array.read()
    np.testing.assert_array_equal(longer.leaves[TABLE].array.read(), np.concatenate([before, before, before[:8]]))
    assert longer.architecture.max_length == 40
    np.testing.assert_array_equal(toy.logits(longer), toy.logits(weights))
    assert longer.leaves[TABLE].origin.detail == "rows 16-39 repeat the first 16"
    assert all(longer.leaves[path] is leaf for path, leaf in weights.leaves.items() if path != TABLE)
    first, second = (longer.moments[slot][TABLE].array.read() for slot in SLOTS)
    np.testing.assert_array_equal(first[16:], 0)
    expected = np.broadcast_to(weights.moments[SLOTS[1]][TABLE].array.read().mean(0), (24, 8))
    np.testing.assert_allclose(second[16:], expected, rtol=1e-6)


@given(st.integers(1, 12), st.integers(13, 60), st.integers(1, 3), st.data())
def test_stretching_is_linear_interpolation(old, new, width, data):
    table = np.random.default_rng(old).standard_normal((old, width)).astype(np.float32)
    array = stretch(lazy.from_array(table), new)
    place = np.linspace(0, old - 1, new)
    expected = np.stack([np.interp(place, np.arange(old), table[:, i]) for i in range(width)], 1)
    np.testing.assert_allclose(array.read(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(array.read()[[0, -1]], table[[0, -1]])
    start = data.draw(st.integers(0, new - 1))
    np.testing.assert_array_equal(array.read((slice(start, start + 3),)), array.read()[start : start + 3])


@given(st.integers(1, 40), st.sampled_from(["copy", "interpolate"]), st.sampled_from([np.float32, ml_dtypes.bfloat16]))
def test_growing_and_shrinking_gives_the_same_bytes(more, how, dtype):
    weights = toy.make_weights(GPT2, dtype=dtype)
    longer = ResizePositions(16 + more, how)(weights)
    assert longer.leaves[TABLE].shape == (16 + more, 8)
    if how == "copy":
        back = ResizePositions(16)(longer)
        assert back.architecture == GPT2
        assert back.leaves[TABLE].array.read().tobytes() == weights.leaves[TABLE].array.read().tobytes()


@pytest.mark.parametrize(
    ("surgery", "architecture", "message"),
    [
        (lambda: ChangeRopeBase(5e5), GPT2, "positions are 'learned'; see ResizePositions"),
        (lambda: ScaleRope("yarn", 2.0), GPT2, "ScaleRope changes RoPE"),
        (lambda: ResizePositions(32), LLAMA, "positions are 'rope'; see ScaleRope and ChangeRopeBase"),
        (lambda: ChangeRopeBase(0.5), LLAMA, "ChangeRopeBase.base is 0.5"),
        (lambda: ScaleRope("yarm", 2.0), LLAMA, "did you mean 'yarn'"),
        (lambda: ScaleRope("yarn", 0.5), LLAMA, "ScaleRope.factor is 0.5"),
        (lambda: ScaleRope("yarn", 2.0), dataclasses.replace(LLAMA, max_length=0), "original_length is needed"),
        (lambda: ResizePositions(0), GPT2, "ResizePositions.max_length is 0"),
        (lambda: ResizePositions(32, "repeat"), GPT2, "ResizePositions.how is 'repeat'"),
    ],
)
def test_what_does_not_fit_is_refused(surgery, architecture, message):
    with pytest.raises(UserError, match=message):
        surgery()(toy.make_weights(architecture))
