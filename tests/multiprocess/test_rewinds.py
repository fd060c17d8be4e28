"""A run of two processes sees a spike: both decide alike, go back together, and jump over the same rows."""

import pathlib
import signal

import numpy as np
from command_runner import fingerprints

from t5x_scale.checkpoint.timeline import load_interventions
from t5x_scale.monitor.metric_log import read_metrics

POISONED = f"--gin_file={pathlib.Path(__file__).parents[1] / 'endtoend' / 'poisoned.gin'}"
STEPS = 60
# See tests/endtoend/test_poisoned_batch.py.
PLAN = [(20, 10, ((128, 224),)), (28, 20, ((288, 384),))]


def test_two_processes_go_back_together(runner, settings, tmp_path):
    train = {name: value for name, value in settings.items() if not name.startswith("MeshConfig")}

    def start(directory, **more):
        return runner.start_all(2, "train", POISONED, MODEL_DIR=str(tmp_path / directory), **train, **more)

    whole = start("whole")
    assert [process.wait() for process in whole] == [0, 0], whole[0].err + whole[1].err
    plan = [(one.spike_step, one.rewind_to, one.skip_rows) for one in load_interventions(tmp_path / "whole")]
    assert plan == PLAN
    for process in whole:
        assert process.err.count("the run goes back to step") == 2
        assert "jumps over the global rows ((288, 384),)" in process.err
    assert np.isfinite(read_metrics(tmp_path / "whole").series["train/loss"].values).all()

    # Process 0 dies with the decision on the disk, and the other one with it.
    killed = start("killed", env={"DIE_AT": "after the line"})
    assert killed[0].wait() == -signal.SIGKILL
    assert killed[1].wait() != 0
    again = start("killed")
    assert [process.wait() for process in again] == [0, 0], again[0].err + again[1].err
    assert fingerprints(tmp_path / "killed", STEPS) == fingerprints(tmp_path / "whole", STEPS)
