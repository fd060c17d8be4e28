import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.mixtures.step_rows import StepRows

schedules = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=4).map(
    lambda gaps: BatchSchedule([(sum(gap for gap, _ in gaps[:i]), rows) for i, (_, rows) in enumerate(gaps)])
)


def continued(before, schedule, step):
    """A run that goes on from `step` with another batch schedule."""
    past = before.until(step)
    return StepRows(schedule.anchored(*past[-1]), json.loads(json.dumps(past)))


@settings(max_examples=80, deadline=None)
@given(first=schedules, second=schedules, third=schedules, cuts=st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_the_past_stays_where_it_was(first, second, third, cuts):
    early, late = sorted(cuts)
    original = StepRows(first)
    changed = continued(original, second, early)
    again = continued(changed, third, late)
    for step in range(130):
        assert original.first_row(step) == first.first_row(step)
        expected = original if step <= early else changed
        assert changed.first_row(step) == expected.first_row(step)
        assert again.first_row(step) == (changed.first_row(step) if step <= late else again.schedule.first_row(step))
    assert again.schedule.first_row(late) == changed.first_row(late)


@settings(max_examples=40, deadline=None)
@given(schedule=schedules, cuts=st.lists(st.integers(0, 120), max_size=6))
def test_resuming_without_a_change_adds_nothing(schedule, cuts):
    steps = StepRows(schedule)
    for cut in sorted(cuts):
        steps = continued(steps, schedule, cut)
        assert steps.past == StepRows(schedule).until(cut)
    assert len(steps.past) <= len(schedule.steps) + 1


def test_what_a_checkpoint_keeps_is_small():
    palm = StepRows(BatchSchedule(((0, 512), (50_000, 1024), (115_000, 2048))))
    past = palm.until(255_000)
    assert past == ((0, 0), (50_000, 25_600_000), (115_000, 92_160_000), (255_000, 378_880_000))
    assert len(json.dumps(past)) < 100
    assert palm.until(0) == ((0, 0),)
    assert palm.until(7) == ((0, 0), (7, 7 * 512))


@pytest.mark.parametrize("past", [((1, 8),), ((0, 0), (5, 30), (5, 40)), ((0, 0), (5, 41))])
def test_pairs_that_cannot_be(past):
    with pytest.raises(ValueError, match=r"increase|begins step 5 at row 40"):
        StepRows(BatchSchedule(8), past)
