import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.mixtures.mixture import PERIOD, Mixture

rates_strategy = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=12).map(
    lambda rates: {f"s{i}": rate for i, rate in enumerate(rates)}
)


@settings(max_examples=40, deadline=None)
@given(rates=rates_strategy, start=st.integers(0, 10**12))
def test_counts_equal_enumeration(rates, start):
    mixture = Mixture(rates)
    rows = np.arange(start, start + 2 * PERIOD + 7)
    sources, counts = mixture.slot(rows)
    for source, before in enumerate(mixture.rows_before(start)):
        mine = counts[sources == source]
        np.testing.assert_array_equal(mine, np.arange(before, before + len(mine)))
    np.testing.assert_array_equal(
        mixture.rows_before(start + len(rows)),
        mixture.rows_before(start) + np.bincount(sources, minlength=len(rates)),
    )


@settings(max_examples=40, deadline=None)
@given(rates=rates_strategy)
def test_every_prefix_is_within_one_row_of_the_shares(rates):
    mixture = Mixture(rates)
    sources, _ = mixture.slot(np.arange(2 * PERIOD))
    for source, share in enumerate(mixture.shares):
        prefix = np.cumsum(sources == source)
        assert np.max(np.abs(prefix - share * np.arange(1, len(prefix) + 1))) < 1.0 + 1e-9


@settings(max_examples=60, deadline=None)
@given(rates=rates_strategy)
def test_slots_follow_the_rates(rates):
    mixture = Mixture(rates)
    assert mixture.slots.sum() == PERIOD
    assert mixture.slots.min() >= 1
    exact = np.array(mixture.rates) / sum(mixture.rates) * PERIOD
    # Within a slot, but for those that pay for the single slots of rare sources.
    rare = np.maximum(1 - exact, 0).sum()
    assert np.all(np.abs(mixture.slots - exact) < 1 + rare + 1e-6)


def test_halves_alternate():
    sources, counts = Mixture({"a": 1, "b": 1}).slot(np.arange(6))
    assert sources.tolist() == [0, 1, 0, 1, 0, 1]
    assert counts.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_rate_too_small_for_a_slot_still_gets_one():
    mixture = Mixture({"web": 1.0, "rare": 1e-9})
    assert mixture.slots.tolist() == [PERIOD - 1, 1]


def test_only_proportions_count():
    np.testing.assert_array_equal(Mixture({"a": 3, "b": 1}).slots, Mixture({"a": 0.75, "b": 0.25}).slots)


@pytest.mark.parametrize("rates", [{}, {"a": 0.0}, {"a": -1}, {"a": float("nan")}, {"a": float("inf"), "b": 1}])
def test_bad_rates_are_named(rates):
    with pytest.raises(UserError, match=r"no source|rate of 'a'"):
        Mixture(rates)


def test_more_sources_than_slots():
    with pytest.raises(UserError, match="at most 4096"):
        Mixture({str(i): 1 for i in range(PERIOD + 1)})
