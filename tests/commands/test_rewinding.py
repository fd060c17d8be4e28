"""Where to go back to, and what to jump over."""

import pytest

from t5x_scale.checkpoint.timeline import Intervention
from t5x_scale.commands.training.rewinding import plan_rewind
from t5x_scale.core.errors import UserError
from t5x_scale.monitor.spikes import Spike, SpikeGuard

SAVED = [1000, 2000, 2950, 3000, 3050]


def rows(first, end):
    return 8 * first, 8 * end


def plan(step, saved=SAVED, before=(), **settings):
    return plan_rewind(SpikeGuard(**settings), Spike(step, "a reason"), saved, before, rows)


def past(*steps):
    return [Intervention(number, step, "", 0, ((0, 1),), 0.0) for number, step in enumerate(steps, 1)]


def test_the_newest_checkpoint_a_hundred_steps_before_the_spike():
    found = plan(3100)
    assert (found.number, found.spike_step, found.reason) == (1, 3100, "a reason")
    assert found.rewind_to == 3000
    assert found.skip_rows == ((8 * 3000, 8 * 3300),)
    assert plan(3099).rewind_to == 2950
    assert plan(3040).rewind_to == 2000


@pytest.mark.parametrize("saved", [[2000], [1000, 2000], [2000, 2500, 2600], [0, 2900]])
def test_which_checkpoint_there_was_does_not_matter_to_what_is_jumped_over(saved):
    assert plan(3000, saved=saved).skip_rows == ((8 * 2900, 8 * 3200),)


def test_early_in_a_run():
    # Of 1000 and 1050, both too near, the oldest; what it has learnt from cannot be jumped over.
    early = plan(1060, saved=[1000, 1050, 1100])
    assert (early.rewind_to, early.skip_rows) == (1000, ((8 * 1000, 8 * 1260),))
    assert plan(1060, saved=[1050, 1100], rewind_steps=0, skip_before=0).rewind_to == 1050
    beginning = plan(700, saved=[])
    assert (beginning.rewind_to, beginning.skip_rows) == (0, ((8 * 600, 8 * 900),))
    assert plan(40, saved=[50]).skip_rows == ((0, 8 * 240),)


def test_there_is_an_end_to_going_back():
    assert plan(3000, before=past(500, 1000, 2950)).number == 4
    with pytest.raises(UserError, match=r"gone back 2 times, which SpikeGuard.max_rewinds allows"):
        plan(3000, before=past(1, 2), max_rewinds=2)
    with pytest.raises(UserError, match=r"going back 3 times to about here did not help"):
        plan(3000, before=past(2901, 3000, 3099))
    assert plan(3000, before=past(2899, 3000, 3099)).number == 4
    with pytest.raises(UserError, match=r"step 3000: a reason; SpikeGuard.policy is 'stop'. Nothing was saved"):
        plan(3000, policy="stop")
