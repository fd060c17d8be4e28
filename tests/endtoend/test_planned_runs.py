"""A run that is given a plan keeps it, puts the curve beside its loss, and says that it left the band."""

import json

import pytest

from t5x_scale.monitor.metric_log import read_metrics

# Batches of 256 tokens; nobody learns words of ten letters to a tenth of a nat in sixty of them.
CURVE = {"law": "hope", "unit": "nats", "tokens": [1e3, 1e6], "loss": [0.1, 0.1], "low": [0.05] * 2, "high": [0.2] * 2}


def test_a_planned_run(runner, source, tmp_path):
    plan, run = tmp_path / "plan.json", tmp_path / "run"
    plan.write_text(json.dumps({"choices": {}, "curve": CURVE}))
    settings = {"MODEL_DIR": str(run), "MIXTURE_OR_TASK_NAME": source, "PLAN": str(plan), "TRAIN_STEPS": 60}
    process = runner.run("train", **settings)
    assert "the loss" in process.out
    assert "is above the band of the plan" in process.out
    log = read_metrics(run)
    (event,) = [event for event in log.events if event["event"] == "plan"]
    assert (event["side"], event["step"]) == ("above", 50)
    assert log.series["plan/expected_loss"].values[-1] == pytest.approx(0.1)
    assert json.loads((run / "plan.json").read_text())["curve"]["law"] == "hope"
    assert json.loads((run / "report" / "summary.json").read_text())["plan"]["side"] == "above"
    page = (run / "report" / "report.html").read_text()
    assert "above the band of hope, 0.05" in page


def test_a_plan_that_is_none_is_refused_before_anything_is_written(runner, source, tmp_path):
    run = tmp_path / "run"
    settings = {"MODEL_DIR": str(run), "MIXTURE_OR_TASK_NAME": source, "PLAN": str(tmp_path / "none.json")}
    process = runner.run("train", code=1, **settings)
    assert "cannot read the plan" in process.err
    assert process.err.count("\n") == 1
    assert not run.exists()
