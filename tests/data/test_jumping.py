"""Going back and jumping over batches: exactly those are missing, and all else is as it was."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.batch import TARGET_TOKENS
from t5x_scale.core.errors import UserError
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.mixtures.mixture_schedule import RatePlan

RAMP = BatchSchedule(((0, 4), (5, 8)))


@pytest.fixture(scope="module")
def stores(make_store, tmp_path_factory):
    directory = tmp_path_factory.mktemp("stores")
    return {"long": make_store(directory / "long", 20_000), "short": make_store(directory / "short", 5_000)}


def delivered(source, steps):
    return np.array([row for step in steps for row in source.global_rows(step)], np.int64)


@settings(max_examples=40, deadline=None)
@given(
    back=st.integers(0, 12),
    distance=st.integers(0, 6),
    length=st.integers(1, 8),
    before=st.lists(st.integers(0, 90), max_size=2),
)
def test_exactly_the_batches_asked_for_are_jumped_over(make_source, stores, back, distance, length, before):
    base = make_source(stores, batch_size=RAMP, skip=[(first, first + 7) for first in before])
    first, end = back + distance, back + distance + length
    interval = base.row_interval(first, end)
    gone = delivered(base, range(first, end))
    state = json.loads(json.dumps(base.state(back)))
    after = base.skipping([interval]).resumed(state, back)

    # Up to there nothing changes, then come the rows that follow those that are gone, and none is lost.
    assert interval == (gone[0], gone[-1] + 1)
    np.testing.assert_array_equal(delivered(after, range(first)), delivered(base, range(first)))
    expected = np.setdiff1d(delivered(base, range(40)), gone)
    np.testing.assert_array_equal(delivered(after, range(40))[: len(expected)], expected)
    # A checkpoint of the new course knows what it jumped over, and so does whoever only reads the list of intervals.
    again = base.skipping([interval]).resumed(json.loads(json.dumps(after.state(end))), end)
    np.testing.assert_array_equal(delivered(again, range(40)), delivered(after, range(40)))
    assert base.skip == make_source(stores, batch_size=RAMP, skip=[(first, first + 7) for first in before]).skip


def test_what_was_learnt_from_cannot_be_jumped_over(make_source, stores):
    base = make_source(stores)
    with pytest.raises(UserError, match="rows to skip must lie ahead: at step 5"):
        base.skipping([base.row_interval(4, 6)]).resumed(base.state(5), 5)


def test_the_data_must_last_for_what_is_jumped_over(make_source, stores):
    base = make_source(stores)
    steps = max(step for step in range(1, 400) if not _is_too_much(base, step))
    with pytest.raises(UserError, match="max_epochs"):
        base.skipping([base.row_interval(10, 60)]).check_enough(steps)


def _is_too_much(source, steps):
    try:
        source.check_enough(steps)
    except UserError:
        return True
    return False


def test_the_tokens_of_a_batch_are_those_of_its_rows(make_source, stores):
    base = make_source(stores)
    after = base.skipping([base.row_interval(3, 7)])
    for step in range(3, 6):
        np.testing.assert_array_equal(after.batch(step)[TARGET_TOKENS], base.batch(step + 4)[TARGET_TOKENS])


def test_a_source_says_where_its_mixture_jumps(make_source, stores):
    old, new = {"long": 1.0, "short": 3.0}, {"long": 3.0, "short": 1.0}
    pieces = ((0, old), (50, new), (80, old))
    assert make_source(stores).jumps == frozenset()
    assert make_source(stores, RatePlan(pieces)).jumps == {50, 80}
    assert make_source(stores, RatePlan(pieces, linear=True)).jumps == frozenset()
