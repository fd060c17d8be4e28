import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.batch_schedule import BatchSchedule, make_batch_schedule

schedules = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9)), min_size=1, max_size=4).map(
    lambda gaps: BatchSchedule(
        tuple((sum(gap for gap, _ in gaps[1 : index + 1]), rows) for index, (_, rows) in enumerate(gaps))
    )
)


def test_palm_540b_tokens():
    # 50k steps of 1M tokens, 65k of 2M and 140k of 4M: 780 billion tokens.
    schedule = BatchSchedule(((0, 512), (50_000, 1024), (115_000, 2048)))
    assert schedule.rows(255_000) * 2048 == (50_000 * 512 + 65_000 * 1024 + 140_000 * 2048) * 2048
    assert schedule.rows(255_000) * 2048 == 775_946_240_000
    assert [schedule.size(step) for step in (0, 49_999, 50_000, 114_999, 115_000, 10**9)] == [
        512,
        512,
        1024,
        1024,
        2048,
        2048,
    ]


@given(schedule=schedules, step=st.integers(0, 120))
def test_first_row_is_the_running_sum(schedule, step):
    assert schedule.first_row(step) == sum(schedule.size(s) for s in range(step))


@given(schedule=schedules, step=st.integers(0, 90), row=st.integers(0, 1000), ahead=st.integers(0, 30))
def test_anchored_counts_from_the_anchor(schedule, step, row, ahead):
    anchored = schedule.anchored(step, row)
    assert anchored.first_row(step + ahead) == row + sum(schedule.size(s) for s in range(step, step + ahead))


def test_a_number_is_a_constant_schedule():
    assert make_batch_schedule(8) == BatchSchedule(((0, 8),)) == make_batch_schedule([[0, 8]])
    assert hash(make_batch_schedule(8)) == hash(make_batch_schedule([(0, 8)]))
    assert make_batch_schedule(BatchSchedule(4)) == BatchSchedule(4)
    assert BatchSchedule(8).first_row(10**7) == 8 * 10**7


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((), "begin at step 0"),
        (((1, 8),), "begin at step 0"),
        (((0, 8), (0, 16)), "must increase"),
        (((0, 8), (9, 16), (5, 32)), "must increase"),
        (0, "at least one row"),
        (((0, 8), (5, -1)), "at least one row"),
        ("8", "number or pairs"),
        (2.5, "number or pairs"),
        (((0, 2.5),), "number or pairs"),
        (True, "number or pairs"),
    ],
)
def test_bad_schedules_are_refused(steps, message):
    with pytest.raises(UserError, match=message):
        BatchSchedule(steps)


def test_outside_the_schedule():
    with pytest.raises(ValueError, match="negative"):
        BatchSchedule(8).size(-1)
