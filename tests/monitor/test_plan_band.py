"""A run beside its plan: the band, what leaves it, and plans that are none."""

import json
import math

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.monitor.metric_log import Series
from t5x_scale.monitor.plan_band import (
    ABOVE,
    BELOW,
    WINDOW,
    WITHIN,
    PlanWatch,
    find_plan_band,
    keep_plan,
    load_plan_band,
    make_course,
    read_plan_band,
)

TOKENS = [1e6, 1e7, 1e8]
CURVE = {"law": "own", "unit": "nats", "tokens": TOKENS, "loss": [4, 3, 2], "low": [3.6, 2.7, 1.8], "high": [5, 4, 3]}


@pytest.fixture
def band(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"choices": {}, "curve": CURVE}))
    return load_plan_band(tmp_path)


class Sayings:
    """Writers and a status line."""

    def __init__(self):
        self.events, self.notes = [], []

    def event(self, kind, step, **values):
        self.events.append((kind, step, values))

    def note(self, text):
        self.notes.append(text)


def test_the_curve_between_its_points(band):
    assert band.expected(np.array(TOKENS)) == pytest.approx([4, 3, 2])
    # Straight in logarithms of both.
    assert band.expected(10**6.5) == pytest.approx(math.sqrt(12))
    assert math.isnan(band.expected(1e5))
    assert band.expected(1e12) == pytest.approx(2)


@pytest.mark.parametrize(
    ("tokens", "loss", "side"),
    [
        (1e7, 3.0, WITHIN),
        (1e7, 4.1, ABOVE),
        (1e7, 2.6, BELOW),
        (1e7, math.nan, ABOVE),
        (1e5, 99.0, WITHIN),
        (0, 99.0, WITHIN),
        (1e9, 3.1, ABOVE),
    ],
)
def test_what_is_outside(band, tokens, loss, side):
    assert band.is_outside(tokens, loss) == side


def test_leaving_and_returning_is_said_once_each(band):
    said = Sayings()
    watch = PlanWatch(band, said, said)
    losses = [3.0] * 100 + [6.0] * 100 + [3.0] * 200
    for step, loss in enumerate(losses):
        watch.see(step, {"train/loss": loss, "train/tokens": 1e7})
    assert [(kind, values["side"]) for kind, _, values in said.events] == [("plan", "above"), ("plan", "within")]
    # A third of a window at 6 lifts the mean of 3 above 4.
    assert said.events[0][1] == 100 + math.ceil(WINDOW / 3) + (WINDOW % 3 == 0)
    assert "above the band of the plan, 2.700 to 4.000" in said.notes[0]


def test_a_single_spike_is_not_a_departure(band):
    said = Sayings()
    watch = PlanWatch(band, said, said)
    for step in range(200):
        watch.see(step, {"train/loss": 30.0 if step == 120 else 3.0, "train/tokens": 1e7})
    assert not said.events


def test_metrics_beside_the_loss(band):
    watch = PlanWatch(band, Sayings(), Sayings())
    assert watch.to_metrics(1e5) == {}
    assert watch.to_metrics(1e7) == pytest.approx({"plan/expected_loss": 3, "plan/low": 2.7, "plan/high": 4})


def test_the_band_along_the_steps_of_a_run(band):
    steps = np.arange(1, 5)
    tokens = Series(steps, np.array([1e5, 1e6, math.nan, 1e8]), np.zeros(4))
    course = make_course(band, tokens)
    assert course.steps.tolist() == [2, 4]
    assert course.high == pytest.approx([5, 3])
    assert course.to_json(2.5)["side"] == "within"
    assert course.to_json(3.5)["side"] == "above"
    assert course.to_json(1.5)["side"] == "below"
    assert course.to_json(None)["side"] is None
    assert make_course(None, tokens) is None
    assert make_course(band, None) is None
    assert make_course(band, Series(steps[:1], np.array([1e5]), np.zeros(1))) is None


def test_no_plan_is_no_band(tmp_path):
    assert load_plan_band(tmp_path) is None
    (tmp_path / "plan.json").write_text('{"choices": {}}')
    assert load_plan_band(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "{}",
        '{"choices": {}, "curve": {}}',
        json.dumps({"choices": {}, "curve": {**CURVE, "tokens": TOKENS[:2]}}),
        json.dumps({"choices": {}, "curve": {**CURVE, "tokens": TOKENS[::-1]}}),
        json.dumps({"choices": {}, "curve": {**CURVE, "low": [9, 9, 9]}}),
        json.dumps({"choices": {}, "curve": {**CURVE, "loss": ["a", 1, 2]}}),
        json.dumps({"choices": {}, "curve": {**CURVE, "high": [5, 4, None]}}),
        json.dumps({"choices": {}, "curve": {name: [] for name in CURVE}}),
    ],
)
def test_what_is_no_plan(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan"):
        load_plan_band(tmp_path)


def test_a_plan_is_kept_beside_the_run(tmp_path):
    source, run = tmp_path / "plan" / "plan.json", tmp_path / "run"
    source.parent.mkdir()
    run.mkdir()
    with pytest.raises(UserError, match="cannot read the plan"):
        find_plan_band(source, run)
    keep_plan(None, run)
    assert find_plan_band(None, run) is None
    source.write_text(json.dumps({"choices": {}, "curve": CURVE}))
    assert find_plan_band(source, run).law == "own"
    keep_plan(source, run)
    assert read_plan_band(run / "plan.json").law == "own"
    # Resumed elsewhere, where the plan itself is gone.
    source.unlink()
    keep_plan(source, run)
    assert find_plan_band(source, run).law == "own"
    assert find_plan_band(None, run).law == "own"


def test_without_a_plan_nothing_is_said():
    said = Sayings()
    watch = PlanWatch(None, said, said)
    for step in range(2 * WINDOW):
        watch.see(step, {"train/loss": math.nan, "train/tokens": 1e7})
    assert not said.events
    assert watch.to_metrics(1e7) == {}
