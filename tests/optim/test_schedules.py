"""Schedules against published values, closed forms at their corners, optax, and their own arithmetic in float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.optim import schedules

EVERY = {
    "constant": schedules.Constant(3e-4),
    "palm": schedules.ConstantThenRsqrt(),
    "cosine": schedules.Cosine(peak=3e-4, total_steps=1000, warmup_steps=100),
    "linear": schedules.Linear(peak=3e-4, total_steps=1000, warmup_steps=100),
    "wsd": schedules.WarmupStableDecay(peak=3e-4, total_steps=1000, warmup_steps=100, decay_steps=200),
    "multi_step": schedules.MultiStep(peak=3e-4, total_steps=1000, warmup_steps=100),
    "rewarm": schedules.Rewarm(schedules.Cosine(peak=1e-4, total_steps=1000, floor_ratio=0.01), warmup_steps=50),
}


def rate(schedule, step):
    return float(schedule(step))


@pytest.mark.parametrize("name", EVERY)
def test_every_schedule_gives_the_same_float32_scalar_traced_or_not(name):
    schedule = EVERY[name]
    traced = jax.jit(schedule)
    for step in (0, 1, 50, 99, 100, 799, 999, 1000, 5000, 2**31 - 1):
        value = schedule(step)
        assert value.dtype == jnp.float32
        assert value.shape == ()
        np.testing.assert_allclose(traced(jnp.int32(step)), value, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=30)
@given(step=st.integers(0, 2**31 - 1))
def test_rates_stay_between_zero_and_the_peak(name, step):
    schedule = EVERY[name]
    inner = getattr(schedule, "schedule", schedule)
    peak = getattr(inner, "peak", getattr(inner, "value", None))
    assert 0 <= rate(schedule, step) <= peak * (1 + 1e-6)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1e-2), (1, 1e-2), (9_999, 1e-2), (10_000, 1e-2), (20_000, 7.0711e-3), (40_000, 5e-3), (255_000, 1.98030e-3)],
)
def test_palm_schedule_has_the_published_values(step, expected):
    value = rate(schedules.ConstantThenRsqrt(), step)
    assert value == pytest.approx(expected, rel=5e-6)
    assert value == pytest.approx(1 / math.sqrt(max(step, 10_000)), rel=1e-7)


def test_palm_schedule_scales_down_for_small_runs():
    schedule = schedules.ConstantThenRsqrt(peak=2e-2, constant_steps=100, warmup_steps=10)
    assert rate(schedule, 5) == pytest.approx(1e-2)
    assert rate(schedule, 100) == pytest.approx(2e-2)
    assert rate(schedule, 400) == pytest.approx(1e-2)


def test_cosine_and_linear_equal_optax():
    cosine = optax.warmup_cosine_decay_schedule(0.0, 3e-4, 100, 1000, end_value=3e-5)
    linear = optax.join_schedules(
        [optax.linear_schedule(0.0, 3e-4, 100), optax.linear_schedule(3e-4, 0.0, 900)], boundaries=[100]
    )
    for step in range(0, 1200, 7):
        assert rate(EVERY["cosine"], step) == pytest.approx(float(cosine(step)), rel=2e-5, abs=1e-12)
        assert rate(EVERY["linear"], step) == pytest.approx(float(linear(step)), rel=2e-5, abs=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_corners_are_exact(name):
    schedule = EVERY[name]
    assert rate(schedule, 0) == 0
    assert rate(schedule, 100) == np.float32(3e-4)
    floor = np.float32(3e-4) * np.float32(schedule.floor_ratio)
    assert rate(schedule, 1000) == floor
    assert rate(schedule, 10**9) == floor


def test_cosine_is_precise_where_float32_cannot_hold_the_step():
    total = 2_000_000_000
    schedule = schedules.Cosine(peak=1.0, total_steps=total, warmup_steps=1_999_990_000, floor_ratio=0.0)
    for step in (1_999_990_001, 1_999_995_000, 1_999_997_501):
        along = (step - schedule.warmup_steps) / (total - schedule.warmup_steps)
        assert rate(schedule, step) == pytest.approx(0.5 * (1 + math.cos(math.pi * along)), rel=2e-6)


@pytest.mark.parametrize(
    ("shape", "halfway"),
    [("linear", 0.55), ("cosine", 0.55), ("sqrt", 0.1 + 0.9 * (1 - math.sqrt(0.5))), ("exponential", math.sqrt(0.1))],
)
def test_warmup_stable_decay(shape, halfway):
    schedule = schedules.WarmupStableDecay(
        peak=2.0, total_steps=1000, warmup_steps=100, decay_steps=200, floor_ratio=0.1, decay_shape=shape
    )
    values = [rate(schedule, step) for step in (50, 100, 500, 800, 900, 1000, 2000)]
    assert values == pytest.approx([1.0, 2.0, 2.0, 2.0, 2 * halfway, 0.2, 0.2], rel=1e-6)


def test_warmup_stable_decay_without_decay_stays():
    schedule = schedules.WarmupStableDecay(peak=2.0, total_steps=1000, warmup_steps=100, decay_steps=0)
    assert rate(schedule, 1000) == 2.0


def test_multi_step_is_deepseeks():
    schedule = schedules.MultiStep(peak=4.2e-4, total_steps=10_000)
    steps = (1000, 2000, 7999, 8000, 8999, 9000, 20_000)
    shares = (0.5, 1, 1, 0.316, 0.316, 0.1, 0.1)
    assert [rate(schedule, s) for s in steps] == pytest.approx([4.2e-4 * share for share in shares], rel=1e-6)


def test_rewarm_joins_its_curve_in_a_straight_line():
    curve = schedules.Cosine(peak=1e-4, total_steps=20_000, floor_ratio=0.01)
    schedule = schedules.Rewarm(curve, warmup_steps=1000, start=1e-6)
    goal = rate(curve, 1000)
    assert rate(schedule, 0) == pytest.approx(1e-6)
    assert rate(schedule, 250) == pytest.approx(1e-6 + (goal - 1e-6) / 4, rel=1e-6)
    for step in (1000, 1001, 12_345, 20_000):
        assert rate(schedule, step) == rate(curve, step)
    assert rate(schedule, 20_000) == pytest.approx(1e-6)


def test_rewarm_continues_palms_schedule_from_where_the_first_run_stopped():
    schedule = schedules.Rewarm(schedules.ConstantThenRsqrt(), warmup_steps=100, origin_step=255_000)
    assert rate(schedule, 0) == 0
    assert rate(schedule, 100) == pytest.approx(1 / math.sqrt(255_100), rel=1e-6)


def test_rewarm_without_warmup_is_its_curve():
    assert rate(schedules.Rewarm(EVERY["palm"], warmup_steps=0), 40_000) == rate(EVERY["palm"], 40_000)


@settings(deadline=None, max_examples=30)
@given(
    total=st.integers(10, 10**6),
    warmup=st.floats(0, 0.9),
    floor=st.floats(0, 1),
    kind=st.sampled_from([schedules.Cosine, schedules.Linear]),
    data=st.data(),
)
def test_after_the_warmup_rates_only_fall(total, warmup, floor, kind, data):
    schedule = kind(peak=1.0, total_steps=total, warmup_steps=int(warmup * total), floor_ratio=floor)
    first = data.draw(st.integers(schedule.warmup_steps, total))
    second = data.draw(st.integers(first, total))
    assert rate(schedule, second) <= rate(schedule, first) + 1e-7
    assert rate(schedule, second) >= floor - 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.Cosine(peak=1.0, total_steps=10, warmup_steps=11), "warmup_steps 11 is more than total_ste"),
        (lambda: schedules.Cosine(peak=1.0, total_steps=0), "Cosine.total_steps is 0"),
        (lambda: schedules.Cosine(peak=1.0, total_steps=1e5), "write 100000"),
        (lambda: schedules.Cosine(peak="3e-4", total_steps=10), "Cosine.peak is '3e-4'"),
        (lambda: schedules.Cosine(peak=-1.0, total_steps=10), "Cosine.peak is -1.0"),
        (lambda: schedules.Linear(peak=1.0, total_steps=10, floor_ratio=10), "Linear.floor_ratio is 10"),
        (lambda: schedules.Linear(peak=1.0, total_steps=10, warmup_steps=True), "warmup_steps is True"),
        (lambda: schedules.ConstantThenRsqrt(warmup_steps=20_000), "more than constant_steps 10000"),
        (lambda: schedules.Constant(float("nan")), "Constant.value is nan"),
        (lambda: schedules.WarmupStableDecay(1.0, 100, 60, 60), "60 + decay_steps 60 are more than"),
        (lambda: schedules.WarmupStableDecay(1.0, 100, 10, 10, decay_shape="cosin"), "did you mean 'cosine'"),
        (lambda: schedules.WarmupStableDecay(1.0, 100, 10, 10, decay_shape="exponential"), "floor_ratio 0"),
        (lambda: schedules.MultiStep(1.0, 5000, boundaries=(0.5,)), "1 boundaries and 2 factors"),
        (lambda: schedules.MultiStep(1.0, 5000, boundaries=(0.9, 0.8)), "rising shares"),
        (lambda: schedules.MultiStep(1.0, 5000, factors=(0.1, -0.1)), "none may be negative"),
        (lambda: schedules.MultiStep(1.0, 1000), "warmup_steps 2000 is more than total_steps 1000"),
        (lambda: schedules.Rewarm(1e-3, warmup_steps=10), "schedules.Constant(0.001)"),
        (lambda: schedules.Rewarm(EVERY["cosine"], warmup_steps=10, origin_step=991), "behind the end of Cosine"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_schedules_can_be_replaced_field_by_field():
    assert dataclasses.replace(EVERY["cosine"], peak=1e-3) == schedules.Cosine(1e-3, 1000, 100)
