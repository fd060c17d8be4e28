"""A run is the same run whatever the number of its processes, and goes on with another number of them.

Eight devices in all: of one process, two or four.
"""

import json
import shutil

import numpy as np
import pytest
from command_runner import devices, fingerprints, numbers

from t5x_scale.checkpoint import layout
from t5x_scale.monitor.metric_log import read_metrics

STEPS, SAVED = 20, 8
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def train(runner, settings):
    """Trains to a step with so many processes, which have eight devices together."""

    def run(model_dir, processes, until=STEPS, **more):
        given = {**settings, "MODEL_DIR": str(model_dir), "TRAIN_STEPS": until, **more}
        started = runner.start_all(processes, "train", env=devices(8 // processes), **given)
        assert [process.wait() for process in started] == [0] * processes, started[0].err
        assert f"done: {until} steps" in started[0].out
        assert not any("done" in process.out for process in started[1:])
        return model_dir

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """The run of one process that all others are compared with."""
    return train(tmp_path_factory.mktemp("whole") / "run", 1)


@pytest.fixture(scope="module")
def of_four(train, tmp_path_factory):
    """A run that four processes left at step `SAVED`."""
    return train(tmp_path_factory.mktemp("of_four") / "run", 4, until=SAVED)


def data_position(model_dir, step):
    """Which data comes next, and from what, as the checkpoint of a step has it."""
    return layout.read_document(layout.step_directory(model_dir / layout.CHECKPOINTS, step)).metadata["data"]


def starts(model_dir):
    """(first step, number of processes) each time that a run was started."""
    lines = map(json.loads, (model_dir / "metrics" / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["processes"]) for line in lines if line.get("event") == "start"]


def check_same_run(model_dir, whole):
    """Asserts the same losses to the tolerance, the same tokens, the same position in the same data."""
    ours, theirs = numbers(read_metrics(model_dir)), numbers(read_metrics(whole))
    losses = theirs["train/loss"][1]
    assert len(losses) == STEPS
    # Neighbouring steps have other batches, and it shows: equal losses are equal data. The order of the data follows
    # from the name of its file, another each time, so that two neighbours may be alike by chance.
    assert np.sort(np.abs(np.diff(losses)))[2] > 10 * TOLERANCE
    assert ours.keys() == theirs.keys()
    for name in ("train/loss", "train/tokens", "train/weight", "optim/learning_rate"):
        np.testing.assert_array_equal(ours[name][0], theirs[name][0], err_msg=name)
        np.testing.assert_allclose(ours[name][1], theirs[name][1], atol=TOLERANCE, rtol=0, err_msg=name)
    assert data_position(model_dir, STEPS) == data_position(whole, STEPS)


def test_two_processes_train_as_one(train, whole, tmp_path):
    run = train(tmp_path / "run", 2)
    check_same_run(run, whole)
    assert starts(run) == [(0, 2)]


@pytest.mark.parametrize("processes", [1, 2])
def test_four_processes_save_and_fewer_go_on(train, whole, of_four, tmp_path, processes):
    run = shutil.copytree(of_four, tmp_path / "run")
    train(run, processes)
    check_same_run(run, whole)
    assert starts(run) == [(0, 4), (SAVED, processes)]


def test_all_begin_with_the_same_bits(train, tmp_path):
    still = {"until": 1, "Constant__value": 0.0}
    one, four = (fingerprints(train(tmp_path / str(n), n, **still), 1) for n in (1, 4))
    params = [path for path in one if path.startswith("params/")]
    assert params
    assert {path: one[path] for path in params} == {path: four[path] for path in params}
