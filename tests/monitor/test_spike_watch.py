"""What the guard sees is said, and one thing is remembered: the spike that asks for a deed."""

import numpy as np
import pytest

from t5x_scale.monitor.spike_watch import SpikeWatch
from t5x_scale.monitor.spikes import SpikeGuard


class Ear:
    """Hears events and notes."""

    def __init__(self):
        self.events, self.notes = [], []

    def event(self, name, step, **details):
        self.events.append((name, step, details))

    def note(self, text):
        self.notes.append(text)


def watch(losses, refused=(), jumps=(), **settings):
    ear = Ear()
    seen = SpikeWatch(SpikeGuard(**settings), ear, ear, jumps=jumps)
    for step, loss in enumerate(losses):
        seen.see(step, {"train/loss": loss, "optim/grad_norm": 1.0, "optim/skipped_updates": float(step in refused)})
    return seen, ear


def jump(at=200, length=300):
    losses = 3 + 0.02 * np.random.default_rng(0).standard_normal(length)
    losses[at:] += 1
    return losses


@pytest.mark.parametrize("policy", ["rewind", "stop"])
def test_a_spike_is_told_and_remembered(policy):
    seen, ear = watch(jump(), policy=policy)
    assert seen.found.step == 200
    # As in metrics.jsonl: said when 205 steps were done.
    details = {"spike_step": 200, "reason": seen.found.reason, "policy": policy}
    assert ear.events == [("spike", 205, details)]
    assert ear.notes == [f"a spike began at step 200: {seen.found.reason}"]


def test_a_warning_is_no_deed():
    seen, ear = watch(jump(), policy="warn")
    assert seen.found is None
    assert len(ear.events) == 1
    assert len(ear.notes) == 1


def test_off_looks_at_nothing_but_what_was_refused():
    seen, ear = watch(jump(), refused={5, 6, 7, 9}, policy="off")
    assert seen.found is None
    assert seen.state() is None
    assert [(name, step) for name, step, _ in ear.events] == [("refused", step) for step in (6, 7, 8, 10)]
    assert len(ear.notes) == 2, "once for each time that it begins"


def test_a_mixture_that_jumps_is_no_spike():
    assert watch(jump(), jumps={200})[0].found is None


def test_after_a_spike_nothing_more_is_seen():
    seen, _ = watch(jump(length=205))
    further, _ = watch(jump(length=260))
    assert further.found == seen.found
    assert further.state() == seen.state()
