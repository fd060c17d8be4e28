"""The guard fires on jumps, never on noise, alike in any units, and alike wherever a run was cut."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.monitor.spikes import OUTLIERS, SpikeDetector, SpikeGuard

SMALL = SpikeGuard(window=16, z_score=3.0, min_rise=0.25, patience=2, huge_rise=4.0, min_growth=4.0)
# Multiples of 1/64 up to 8: sums and halves of these are exact.
exact = st.integers(0, 512).map(lambda n: n / 64)
# A loss of 64 and more is one that is not finite.
runs = st.lists(st.tuples(st.integers(128, 256).map(lambda n: n / 64), exact, st.booleans()), min_size=20, max_size=90)


def see_all(guard, losses, norms=None, refused=(), first=0, state=None):
    """Every spike that a detector tells of, and its state in the end."""
    detector = SpikeDetector(guard, state)
    norms = np.ones(len(losses)) if norms is None else norms
    found = [
        (step, spike)
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first)
        if (spike := detector.see(step, float(loss), float(norm), step in refused))
    ]
    return found, detector.state()


def make_losses(run):
    """Mostly a level with noise; where the flag is set, a jump."""
    return [level + (jump if is_up else 0.0) for level, jump, is_up in run]


@settings(max_examples=60, deadline=None)
@given(run=runs, cuts=st.lists(st.integers(0, 90), max_size=3))
def test_cut_anywhere_the_answers_are_the_same(run, cuts):
    losses = make_losses(run)
    norms = [1 + jump for _, jump, _ in run]
    refused = {step for step, (_, jump, _) in enumerate(run) if jump > 7.5}
    whole, last = see_all(SMALL, losses, norms, refused)
    parts, state = [], None
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(losses)], strict=True):
        found, state = see_all(SMALL, losses[begin:end], norms[begin:end], refused, begin, state)
        state = json.loads(json.dumps(state, allow_nan=False))
        parts += found
    assert parts == whole
    assert state == json.loads(json.dumps(last))


@settings(max_examples=60, deadline=None)
@given(run=runs, shift=st.integers(-8, 8), power=st.integers(-4, 4))
def test_units_do_not_matter(run, shift, power):
    losses, scale = np.array(make_losses(run)), 2.0**power
    scaled = SpikeGuard(
        window=16, z_score=3.0, min_rise=0.25 * scale, patience=2, huge_rise=4.0 * scale, min_growth=None
    )
    plain = SpikeGuard(window=16, z_score=3.0, min_rise=0.25, patience=2, huge_rise=4.0, min_growth=None)
    steps = [(step, spike.step) for step, spike in see_all(plain, losses)[0]]
    assert [(step, spike.step) for step, spike in see_all(scaled, (losses + shift) * scale)[0]] == steps


NOISES = {
    "normal": lambda generator, n: generator.normal(3, 0.1, n),
    "heavy": lambda generator, n: 3 + 0.05 * generator.standard_t(3, n),
    "skewed": lambda generator, n: 2 + 0.2 * generator.exponential(1, n),
    "two sources": lambda generator, n: generator.normal(3, 0.05, n) + 1.5 * (generator.random(n) < 0.1),
    "a rare source": lambda generator, n: generator.normal(3, 0.05, n) + 2.5 * (generator.random(n) < 0.01),
    "falling": lambda generator, n: 9 * np.exp(-np.arange(n) / 300) + generator.normal(2, 0.1, n),
    "warming up": lambda generator, n: 10 - 7 * np.minimum(np.arange(n) / 2000, 1) + generator.normal(0, 0.3, n),
    "drifting up": lambda generator, n: 2 + 1e-4 * np.arange(n) + generator.normal(0, 0.1, n),
}


@pytest.mark.parametrize("noise", NOISES)
def test_the_default_never_fires_on_an_ordinary_run(noise):
    generator = np.random.default_rng(len(noise))
    losses = NOISES[noise](generator, 20_000)
    norms = np.exp(generator.normal(-1, 0.5, len(losses)))
    assert see_all(SpikeGuard(), losses, norms)[0] == []


@pytest.mark.parametrize("distribution", ["normal", "standard_cauchy", "exponential"])
def test_the_stated_rate_holds_for_any_distribution(distribution):
    # With nothing but the order of the losses asked for, so that the bound is nearly met.
    guard = SpikeGuard(window=20, z_score=0.0, min_rise=0.0, patience=2, huge_rise=None, min_growth=None)
    n, patience = 50_000, guard.patience
    bound = math.comb(patience + OUTLIERS, patience) / math.comb(guard.window + patience, patience)
    found = see_all(guard, getattr(np.random.default_rng(3), distribution)(size=n))[0]
    assert 0.3 * bound * n < len(found) < 1.1 * bound * n


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    at=st.integers(130, 400),
    rise=st.floats(1.0, 20.0),
    length=st.integers(5, 60),
    slope=st.floats(0, 2e-3),
)
def test_a_planted_jump_is_found_at_its_first_step(seed, at, rise, length, slope):
    generator = np.random.default_rng(seed)
    losses = 3 + slope * np.arange(500)[::-1] + generator.normal(0, 0.04, 500)
    losses[at : at + length] += rise
    ((found, spike),) = see_all(SpikeGuard(), losses)[0]
    assert spike.step == at
    assert found <= at + SpikeGuard().patience - 1
    assert "nats above the median of the 128 steps before" in spike.reason


def test_one_huge_step_is_enough_and_one_large_is_not():
    for rise, expected in ((4.5, []), (5.5, [200])):
        losses = 2 + 0.01 * np.random.default_rng(0).standard_normal(400)
        losses[200] += rise
        assert [spike.step for _, spike in see_all(SpikeGuard(), losses)[0]] == expected


def test_a_larger_gradient_counts_where_the_loss_does_not_fall():
    generator = np.random.default_rng(0)
    losses, norms = 3 + generator.normal(0, 0.02, 400), np.exp(generator.normal(0, 0.1, 400))
    norms[300:310] *= 20
    losses[300:310] += 0.1
    ((_, spike),) = see_all(SpikeGuard(), losses, norms)[0]
    assert spike.step == 300
    assert "gradient norm" in spike.reason
    assert see_all(SpikeGuard(min_growth=None), losses, norms)[0] == []
    losses[300:310] -= 1.0
    assert see_all(SpikeGuard(), losses, norms)[0] == []


def test_updates_that_were_refused():
    losses = np.full(400, 3.0)
    assert see_all(SpikeGuard(), losses, refused={50, 300})[0] == []
    ((step, spike),) = see_all(SpikeGuard(), losses, refused={50, 170})[0]
    assert (step, spike.step) == (170, 50)
    assert spike.reason == "loss or gradients not finite at steps 50, 170"
    ((step, spike),) = see_all(SpikeGuard(refused_updates=1), losses, refused={7})[0]
    assert (step, spike.step, spike.reason) == (7, 7, "loss or gradients not finite at step 7")
    # They are no part of the window, whatever their loss was said to be.
    losses[[50, 170]] = [math.nan, math.inf]
    assert len(see_all(SpikeGuard(), losses)[0]) == 1


def test_a_new_level_is_told_once_and_becomes_the_ordinary_one():
    losses = 3 + 0.02 * np.random.default_rng(0).standard_normal(1200)
    losses[400:] += 1.0
    losses[900:] += 1.0
    assert [spike.step for _, spike in see_all(SpikeGuard(policy="warn"), losses)[0]] == [400, 900]


def test_a_level_that_was_to_be_expected_is_no_spike():
    losses = 3 + 0.02 * np.random.default_rng(0).standard_normal(600)
    losses[300:] += 1.0
    losses[500:510] += 1.0
    detector, found = SpikeDetector(SpikeGuard()), []
    for step, loss in enumerate(losses):
        if step == 300:
            detector.forget()
        found.append(detector.see(step, float(loss), 1.0))
    assert [spike.step for spike in found if spike] == [500]


def test_a_short_history_is_not_judged():
    losses = np.full(300, 2.0)
    losses[100:] = 12.0
    assert see_all(SpikeGuard(), losses)[0] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "rewnd"}, "SpikeGuard.policy is 'rewnd' (did you mean 'rewind'"),
        ({"window": 7}, "SpikeGuard.window is 7; expected a whole number from 8 to 10,000,000"),
        ({"window": 10**26}, "expected a whole number from 8 to 10,000,000"),
        ({"patience": 10**26}, "SpikeGuard.patience is 1"),
        ({"rewind_steps": 10_000_001}, "SpikeGuard.rewind_steps is 10000001; expected a whole number from 0"),
        ({"skip_after": 10**26}, "SpikeGuard.skip_after is 1"),
        ({"max_rewinds": 10**26}, "SpikeGuard.max_rewinds is 1"),
        ({"z_score": 10**400}, "SpikeGuard.z_score is 1"),
        ({"patience": 2.0}, "SpikeGuard.patience is 2.0"),
        ({"skip_after": True}, "SpikeGuard.skip_after is True"),
        ({"z_score": math.nan}, "SpikeGuard.z_score is nan; expected a number, 0 or more"),
        ({"min_growth": 0.5}, "SpikeGuard.min_growth is 0.5; expected a number, 1 or more"),
        ({"min_rise": None}, "SpikeGuard.min_rise is None"),
        ({"huge_rise": "5"}, "SpikeGuard.huge_rise is '5'"),
        ({"skip_before": 101}, "skip_before is 101, more than rewind_steps = 100"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError) as error:
        SpikeGuard(**settings)
    assert message in str(error.value)
