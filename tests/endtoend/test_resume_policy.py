"""What may change when a MODEL_DIR is continued, what becomes of a run that is done, and where new runs begin."""

import json
import shutil

import numpy as np
import pytest
from command_runner import check_same_metrics, contents, devices, fingerprints, steps

from t5x_scale.monitor.metric_log import read_metrics


@pytest.fixture
def old(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished.path, tmp_path / "old")


def without(found, *names):
    return {path: digest for path, digest in found.items() if not path.startswith(names)}


def test_done_is_done_and_more_steps_go_on(runner, source, finished, old, tmp_path):
    run = {"MODEL_DIR": str(old), "MIXTURE_OR_TASK_NAME": source}
    before = contents(old)
    again = runner.run("train", **run)
    assert "done: 12 steps" in again.out
    # The copy is called otherwise than the run it was copied from, which stands in its files.
    volatile = ("metrics", "health", "report", "run.json", "config.gin", "model-info.txt")
    assert without(contents(old), *volatile) == without(before, *volatile)
    check_same_metrics(old, finished.path)

    # To 20 in two parts, and at once.
    runner.run("train", **run, TRAIN_STEPS=20)
    whole = {**run, "MODEL_DIR": str(tmp_path / "whole"), "TRAIN_STEPS": 20}
    runner.run("train", **whole)
    assert fingerprints(old, 20) == fingerprints(tmp_path / "whole", 20)
    series = read_metrics(old).series["train/loss"]
    assert series.steps.tolist() == list(range(1, 21))
    np.testing.assert_array_equal(series.values, read_metrics(tmp_path / "whole").series["train/loss"].values)


def test_a_damaged_checkpoint_is_passed_over(runner, source, finished, old):
    run = {"MODEL_DIR": str(old), "MIXTURE_OR_TASK_NAME": source}
    payload = max((old / "checkpoints" / "12" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 0x10
    payload.write_bytes(bytes(data))
    (old / "checkpoints" / "9" / "metadata" / "metadata").write_text("{")
    process = runner.run("train", **run)
    assert "step 12" in process.err
    assert "damaged and NOT used" in process.err
    assert "Falling back to step 6" in process.err
    assert steps(old)[-1] == 12
    assert fingerprints(old, 12) == fingerprints(finished.path, 12)
    check_same_metrics(old, finished.path)


def test_what_changes_is_on_record(runner, source, old):
    """The learning rate, the batch size and what is skipped from step 12 on, and the mesh."""
    run = {"MODEL_DIR": str(old), "MIXTURE_OR_TASK_NAME": source, "TRAIN_STEPS": 18, "MAX_EPOCHS": 2.0}
    run |= {"Constant__value": 5e-3, "EvaluationConfig__every_steps": 0, "train__train__log_every_steps": 5}
    process = runner.run("train", env=devices(8), **run, BATCH_SIZE=16, SKIP_ROWS=((150, 160),))
    for text in ("learning_rate/value: 0.01 -> 0.005", "batch_size: [[0, 8]] -> [[0, 16]]", "changed from step 12 on"):
        assert text in process.err
    assert "bitwise resume is not promised" in process.err
    assert "device_count: 1 -> 8" in process.err
    record = json.loads((old / "run.json").read_text())
    assert {(change["step"], change["key"]) for change in record["changes"]} == {
        (12, "optimizer/learning_rate/value"),
        (12, "batch_size"),
        (12, "skip"),
    }
    log = read_metrics(old).series
    assert log["train/tokens"].values.tolist() == [32 * (8 * min(k, 12) + 16 * max(k - 12, 0)) for k in range(1, 19)]
    assert log["train/weight"].values.tolist() == [256.0] * 12 + [512.0] * 6
    assert log["optim/learning_rate"].values.tolist() == [float(np.float32(0.01))] * 12 + [float(np.float32(0.005))] * 6
    data = json.loads((old / "checkpoints" / "18" / "metadata" / "metadata").read_text())["content"]["metadata"]["data"]
    assert data["row"] == 8 * 12 + 16 * 6
    assert data["skip"] == [[150, 160]]


def test_a_new_run_from_the_parameters_of_another(runner, source, finished, tmp_path):
    new = tmp_path / "new"
    run = {"MODEL_DIR": str(new), "MIXTURE_OR_TASK_NAME": source, "INITIAL_CHECKPOINT_PATH": str(finished.path)}
    # A rate of 0 leaves the parameters what they were.
    run |= {"TRAIN_STEPS": 2, "Constant__value": 0.0, "SEED": 5, "EvaluationConfig__every_steps": 1}
    runner.run("train", **run)
    begun, source_run = fingerprints(new, 2), fingerprints(finished.path, 12)
    params = [path for path in source_run if path.startswith("params/")]
    assert params
    assert {path: begun[path] for path in params} == {path: source_run[path] for path in params}
    assert begun["step"] != source_run["step"]
    origin = (new / "origin.txt").read_text()
    assert origin.startswith(f"from {finished.path}/checkpoints/12\n")
    assert f"\n{len(params)} tensors, " in origin
    assert all(f"restored from {path}" in origin for path in params)
    losses = read_metrics(new).series["eval/" + metric_name(finished.path) + "/loss"].values
    assert losses[0] == read_metrics(finished.path).series["eval/" + metric_name(finished.path) + "/loss"].values[-1]
    # The same command again continues the new run, not the old one.
    again = runner.run("train", **run)
    assert "done: 2 steps" in again.out
    assert fingerprints(new, 2) == begun


def metric_name(run):
    return next(name for name in read_metrics(run).series if name.startswith("eval/")).split("/")[1]
