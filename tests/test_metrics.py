"""Sums by row, and the interval of a difference against what is known about it."""

import json

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.metrics import Interval, RowSums, accuracy_gain, by_objective, mixture_loss


def make(correct, weight=10.0, tokens="t"):
    correct = np.asarray(correct, np.float64)
    return RowSums(2.0 * correct, correct, np.broadcast_to(np.float64(weight), correct.shape).copy(), tokens)


def test_loss_and_accuracy_weigh_tokens_not_rows():
    sums = RowSums(np.array([3.0, 5.0]), np.array([1.0, 1.0]), np.array([1.0, 3.0]), "t")
    assert sums.loss == 2.0
    assert sums.accuracy == 0.5


def test_a_file_gives_back_what_it_was_given():
    sums = make([1, 2, 3])
    again = RowSums.from_dict(json.loads(json.dumps(sums.to_dict())))
    for name in ("cross_entropy", "correct", "weight"):
        np.testing.assert_array_equal(getattr(again, name), getattr(sums, name))
    assert again.tokens == sums.tokens


def test_joined_passes():
    joined = RowSums.join([make([1, 2], tokens="a"), make([3], tokens="b")])
    assert joined.correct.tolist() == [1, 2, 3]
    assert joined.tokens == "a b"


def test_rows_are_sorted_by_what_was_asked():
    parts = {"web.text.causal_lm": make([1]), "code.causal_lm": make([2]), "code.spans": make([3])}
    found = by_objective({name: sums.to_dict() for name, sums in parts.items()})
    assert {name: list(tasks) for name, tasks in found.items()} == {
        "causal_lm": ["code", "web.text"],
        "spans": ["code"],
    }
    assert found["causal_lm"]["web.text"].correct.tolist() == [1]


def test_the_loss_of_a_mixture_is_by_its_shares_of_tokens():
    rows = {name: RowSums(np.array([nats]), np.zeros(1), np.ones(1), "t") for name, nats in (("a", 2.0), ("b", 4.0))}
    assert mixture_loss(rows, {"a": 0.75, "b": 0.25}) == mixture_loss(rows, {"a": 3, "b": 1}) == 2.5


@pytest.mark.parametrize(
    ("low", "high", "side"), [(0.1, 0.3, "above"), (-0.3, -0.1, "below"), (0.0, 0.2, "not told apart from")]
)
def test_what_an_interval_says(low, high, side):
    interval = Interval((low + high) / 2, low, high)
    assert interval.side == side
    assert interval.render() == f"{(low + high) / 2:+.4f} [{low:+.4f}, {high:+.4f}]"


def test_the_interval_is_the_normal_one_where_rows_are_many():
    """Rows of equal weight: the mean of n differences, whose standard error is known in closed form."""
    generator = np.random.default_rng(0)
    before, after = generator.binomial(10, 0.3, 2000), generator.binomial(10, 0.35, 2000)
    difference = (after - before) / 10
    error = difference.std() / np.sqrt(2000)
    gain = accuracy_gain(make(after), make(before))
    assert gain.value == pytest.approx(difference.mean(), abs=1e-12)
    assert gain.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.1 * error)
    assert gain.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.1 * error)


def test_pairing_removes_what_both_sides_share():
    """Rows differ wildly in how hard they are; one side is one token better everywhere: nothing is uncertain."""
    before = np.random.default_rng(0).integers(0, 9, 200)
    gain = accuracy_gain(make(before + 1), make(before))
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        before, after = generator.binomial(5, 0.3, 80), generator.binomial(5, 0.4, 80)
        gain = accuracy_gain(make(after, 5), make(before, 5), confidence=0.9, samples=1000, seed=seed)
        covered += gain.low <= 0.1 <= gain.high
    # 180 are expected, with a standard deviation of 4.2.
    assert 165 <= covered <= 195


def test_rows_of_unequal_weight_are_a_ratio_of_sums():
    after = RowSums(np.zeros(2), np.array([1.0, 0.0]), np.array([1.0, 9.0]), "t")
    before = RowSums(np.zeros(2), np.array([0.0, 0.0]), np.array([1.0, 9.0]), "t")
    gain = accuracy_gain(after, before)
    # Of two rows three draws are possible: the first twice, both, the second twice.
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.1, 0.0, 1.0))


def test_blocks_see_that_neighbours_are_alike():
    """Rows that come in fours of equal differences hold a quarter of the evidence: twice the width."""
    difference = np.repeat(np.random.default_rng(2).integers(-3, 4, 500), 4)
    before = make(np.full(2000, 5))
    single, blocked = (accuracy_gain(make(5 + difference), before, block=block) for block in (1, 4))
    assert single.value == blocked.value
    assert (blocked.high - blocked.low) / (single.high - single.low) == pytest.approx(2.0, rel=0.05)


def test_the_last_block_may_be_short():
    gain = accuracy_gain(make([1, 2, 3, 4, 6]), make([1, 2, 3, 4, 5]), block=2)
    assert gain.value == pytest.approx(0.02)


def test_the_same_seed_gives_the_same_interval():
    after, before = make([3, 4, 5, 6]), make([1, 4, 2, 6])
    assert accuracy_gain(after, before, seed=3) == accuracy_gain(after, before, seed=3)
    assert accuracy_gain(after, before, seed=3, samples=999) != accuracy_gain(after, before, seed=4, samples=999)


@pytest.mark.parametrize("other", [make([1, 2], tokens="u"), make([1, 2], weight=9.0), make([1, 2, 3])])
def test_other_tokens_are_refused(other):
    with pytest.raises(UserError, match="same tokens"):
        accuracy_gain(make([1, 2]), other)
