import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.mixtures.mixture import PERIOD, Mixture
from t5x_scale.data.mixtures.mixture_schedule import MixtureSchedule, RatePlan
from t5x_scale.data.mixtures.step_rows import StepRows

NAMES = ("a", "b", "c", "d")
shares_strategy = st.dictionaries(st.sampled_from(NAMES), st.floats(1e-3, 10), min_size=1)


@st.composite
def pieces_strategy(draw, gap=3 * PERIOD):
    gaps = draw(st.lists(st.integers(1, gap), max_size=3))
    rows = [0, *np.cumsum(gaps).tolist()]
    return [(row, draw(shares_strategy)) for row in rows]


def enumerate_counts(schedule, sources):
    """How often each row's source came before it, counted one by one."""
    seen = dict.fromkeys(range(len(schedule.names)), 0)
    counts = []
    for source in sources.tolist():
        counts.append(seen[source])
        seen[source] += 1
    return counts


@settings(max_examples=25, deadline=None)
@given(pieces=pieces_strategy(gap=700))
def test_every_source_is_gone_through_without_gap_or_repetition(pieces):
    schedule = MixtureSchedule(pieces)
    rows = np.arange(pieces[-1][0] + 900)
    sources, counts = schedule.slot(rows)
    assert counts.tolist() == enumerate_counts(schedule, sources)
    for row in (0, len(rows) // 2, len(rows)):
        expected = np.bincount(sources[:row], minlength=len(schedule.names))
        np.testing.assert_array_equal(schedule.rows_before(row), expected)


@settings(max_examples=25, deadline=None)
@given(pieces=pieces_strategy(), start=st.integers(0, 10**12), order=st.randoms())
def test_any_rows_in_any_order(pieces, start, order):
    schedule = MixtureSchedule(pieces)
    rows = [start + i for i in range(500)]
    order.shuffle(rows)
    sources, counts = schedule.slot(np.array(rows))
    before = schedule.rows_before(start)
    for source in range(len(schedule.names)):
        mine = np.sort(counts[sources == source])
        np.testing.assert_array_equal(mine, before[source] + np.arange(len(mine)))


@settings(max_examples=25, deadline=None)
@given(shares=shares_strategy, start=st.integers(0, 10**10))
def test_a_constant_schedule_is_the_mixture(shares, start):
    mixture = Mixture(dict(sorted(shares.items())))
    # The same rates, written down three times and in other units, are no change.
    doubled = {name: 2 * rate for name, rate in shares.items()}
    schedule = MixtureSchedule([(0, shares), (100, doubled), (9999, {**shares, "zero": 0.0})])
    assert schedule.names == mixture.names
    rows = np.arange(start, start + 5000)
    for left, right in zip(schedule.slot(rows), mixture.slot(rows), strict=True):
        np.testing.assert_array_equal(left, right)
    assert schedule.digest(10**9) == MixtureSchedule([(0, shares)]).digest(1)


@settings(max_examples=40, deadline=None)
@given(first=shares_strategy, second=shares_strategy, third=shares_strategy, at=st.integers(1, 9000))
def test_the_digest_is_of_the_past_alone(first, second, third, at):
    left = MixtureSchedule([(0, first), (at, second)])
    right = MixtureSchedule([(0, first), (at, {**third, "new": 1.0})])
    assert left.digest(at) == right.digest(at) == MixtureSchedule([(0, first)]).digest(at)
    assert left.digest(at + 1) != right.digest(at + 1)
    rows = np.arange(at)
    for schedule in (left, right):
        sources, counts = schedule.slot(rows)
        expected, expected_counts = Mixture(dict(sorted(first.items()))).slot(rows)
        assert [schedule.names[s] for s in sources] == [sorted(first)[s] for s in expected]
        np.testing.assert_array_equal(counts, expected_counts)


def test_shares_by_piece():
    schedule = MixtureSchedule([(0, {"a": 3, "b": 1}), (1000, {"b": 1})])
    assert schedule.shares(999) == {"a": 0.75, "b": 0.25}
    assert schedule.shares(1000) == {"b": 1.0}
    assert schedule.rows_before(2000).tolist() == [750, 1250]


def test_pieces_begin_at_steps_whatever_the_batch_size():
    plan = RatePlan(((0, {"a": 1.0}), (10, {"b": 1.0}), (20, {"a": 1.0, "b": 1.0})))
    assert plan.names == ("a", "b")
    schedule = plan.by_rows(StepRows(BatchSchedule(((0, 4), (15, 8)))))
    assert schedule.starts.tolist() == [0, 40, 40 + 5 * 4 + 5 * 8]
    sources, _ = schedule.slot(np.array([39, 40, 99]))
    assert [schedule.names[s] for s in sources] == ["a", "b", "b"]


def test_a_ramp_is_even_steps_between_its_ends():
    plan = RatePlan(((0, {"a": 1.0}), (100, {"a": 1.0, "b": 0.0}), (200, {"b": 1.0})), linear=True, ramp_pieces=4)
    steps = plan.steps()
    assert [step for step, _ in steps] == [0, 25, 50, 75, 100, 125, 150, 175, 200]
    assert [share.get("b", 0.0) for step, share in steps if step >= 100] == [0.125, 0.375, 0.625, 0.875, 1.0]
    schedule = plan.by_rows(StepRows(BatchSchedule(64)))
    # Over the whole ramp each source has half; before it, and behind it, one has all.
    ramp = schedule.rows_before(200 * 64) - schedule.rows_before(100 * 64)
    assert ramp.tolist() == [3200, 3200]
    assert schedule.shares(0) == {"a": 1.0}
    assert schedule.shares(200 * 64) == {"b": 1.0}


def test_a_short_ramp_has_no_more_pieces_than_steps():
    plan = RatePlan(((0, {"a": 1.0}), (3, {"b": 1.0})), linear=True, ramp_pieces=32)
    assert [step for step, _ in plan.steps()] == [0, 1, 2, 3]


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(1, 260), rows=st.integers(1, 40), linear=st.booleans())
def test_a_new_batch_size_leaves_the_past_where_it_was(cut, rows, linear):
    plan = RatePlan(((0, {"a": 1.0}), (100, {"a": 0.5, "b": 0.5}), (250, {"b": 1.0})), linear, ramp_pieces=6)
    steps = StepRows(BatchSchedule(((0, 8), (120, 16))))
    past = steps.until(cut)
    changed = StepRows(BatchSchedule(rows).anchored(*past[-1]), past)
    before, after = plan.by_rows(steps), plan.by_rows(changed)
    assert before.digest(past[-1][1]) == after.digest(past[-1][1])
    # And without the past, a change of batch size would have moved it.
    for step, _ in plan.steps():
        if step > cut:
            assert changed.first_row(step) in after.starts


def test_rows_that_hold_less_come_more_often():
    plan = RatePlan.constant({"full": 0.5, "half": 0.5})
    schedule = plan.by_rows(StepRows(BatchSchedule(8)), {"full": 2048.0, "half": 1024.0})
    full, half = schedule.rows_before(3 * PERIOD)
    assert half / full == pytest.approx(2, abs=0.01)
    # Equal fill leaves the very rates.
    even = plan.by_rows(StepRows(BatchSchedule(8)), {"full": 0.1, "half": 0.1})
    assert even.digest(1) == plan.by_rows(StepRows(BatchSchedule(8))).digest(1)


def test_a_piece_without_any_source_is_refused():
    with pytest.raises(UserError, match="all rates are zero"):
        MixtureSchedule([(0, {"a": 1.0}), (10, {"a": 0.0})])
    with pytest.raises(UserError, match="rate of 'a' is -1"):
        MixtureSchedule([(0, {"a": -1})])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=20, max_size=60), st.floats(0.05, 0.45))
def test_many_short_pieces_hold_their_shares(lengths, share):
    # The shares differ by a slot, so that neighbours are not joined: as on a slow ramp of a run with small batches.
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).tolist()
    shares = [share + (index % 2) / PERIOD for index in range(len(starts))]
    schedule = MixtureSchedule([(row, {"a": one, "b": 1 - one}) for row, one in zip(starts, shares, strict=True)])
    rows = sum(lengths)
    # Each piece is off by less than one row, and one way as often as the other.
    assert abs(schedule.rows_before(rows)[0] - share * rows) < len(lengths) ** 0.5


def test_a_cut_between_equal_rates_is_no_cut():
    rates = {"a": 0.3, "b": 0.7}
    near = {"a": 0.3 + 1 / PERIOD, "b": 0.7 - 1 / PERIOD}
    cut = MixtureSchedule([(0, rates), (5, near), (6, rates)])
    whole = Mixture(rates)
    rows = np.arange(6, 3 * PERIOD)
    np.testing.assert_array_equal(cut.slot(rows)[0], whole.slot(rows)[0])
