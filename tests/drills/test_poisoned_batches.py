"""Bad rows anywhere, and kill -9 at every moment of going back from them: the plan is kept, and so is every bit."""

import os
import pathlib
import random
import signal
import types

import numpy as np
import pytest
from command_runner import check_same_metrics, fingerprints

from t5x_scale.checkpoint.timeline import load_interventions
from t5x_scale.monitor.metric_log import read_metrics

POISONED = f"--gin_file={pathlib.Path(__file__).parents[1] / 'endtoend' / 'poisoned.gin'}"
# Those of tests/endtoend/poison.py, which only the run itself can import.
MOMENTS = (
    "before the line",
    "half a line",
    "after the line",
    "one set aside",
    "all set aside",
    "restored",
    "before the next save",
)
CASES = int(os.environ.get("DRILL") or 8)
SEED, STEPS, ROWS = 20_261_127, 60, 8
# Of poisoned.gin.
SAVE_EVERY, REWIND, BEFORE, AFTER = 5, 6, 4, 8
SOUND = {"Poisoned__nonsense": (), "Poisoned__not_finite": ()}


@pytest.fixture(scope="module")
def common(settings):
    return {**settings, "SpikeGuard__z_score": 2.5}


@pytest.fixture(scope="module")
def clean(runner, common, tmp_path_factory):
    """The run whose data is sound, and the standard deviation of the difference of two such means of ten losses."""
    path = tmp_path_factory.mktemp("clean") / "run"
    runner.run("train", POISONED, MODEL_DIR=str(path), **common, **SOUND)
    assert not load_interventions(path)
    end = _end(path)
    return types.SimpleNamespace(mean=end.mean(), noise=end.std(ddof=1) * np.sqrt(2 / len(end)))


def test_bad_rows_anywhere(runner, common, clean, tmp_path, record_property):
    generator = random.Random(SEED)
    for number in range(CASES):
        case, run = _draw(generator), {name: tmp_path / f"{number}_{name}" for name in ("whole", "killed", "never")}
        train = {**common, "Poisoned__not_finite": case.not_finite, "Poisoned__nonsense": case.nonsense}
        runner.run("train", POISONED, MODEL_DIR=str(run["whole"]), **train)
        plan = [(one.spike_step, one.rewind_to, one.skip_rows) for one in load_interventions(run["whole"])]
        assert plan == case.plan, case

        runner.run("train", POISONED, MODEL_DIR=str(run["never"]), SKIP_ROWS=case.rows, **common, **SOUND)
        _kill(runner, run["killed"], train, case.moment, case.intervention)
        for other in ("never", "killed"):
            assert fingerprints(run[other], STEPS) == fingerprints(run["whole"], STEPS), case
            check_same_metrics(run[other], run["whole"])
        assert abs(_end(run["whole"]).mean() - clean.mean) < 3 * clean.noise, case
    record_property("cases", CASES)
    record_property("shown", "each against a run that never saw those rows, one killed in between, and a clean one")


def test_every_moment_of_going_back(runner, common, tmp_path, record_property):
    whole = tmp_path / "whole"
    runner.run("train", POISONED, MODEL_DIR=str(whole), **common)
    moments = [(moment, number) for number in (1, 2) for moment in MOMENTS]
    for moment, number in moments:
        killed = tmp_path / f"{moment} {number}"
        _kill(runner, killed, common, moment, number)
        assert fingerprints(killed, STEPS) == fingerprints(whole, STEPS), (moment, number)
        check_same_metrics(killed, whole)
    record_property("cases", len(moments))
    record_property("shown", ", ".join(MOMENTS))


def _kill(runner, path, train, moment, intervention):
    """A run that is killed at a moment of an intervention, and goes on."""
    environment = {"DIE_AT": moment, "DIE_IN": str(intervention)}
    process = runner.start("train", POISONED, env=environment, MODEL_DIR=str(path), **train)
    assert process.wait() == -signal.SIGKILL, (moment, process.err)
    runner.run("train", POISONED, MODEL_DIR=str(path), **train)


def _draw(generator):
    """Two updates that are refused and, later, some batches of nonsense; what shall be done about them, worked out."""
    refused = generator.randint(14, 22)
    again = refused + generator.randint(1, AFTER - 1)
    nonsense = generator.randint(refused + 20, 46)
    width = generator.randint(2, 5)
    # The second spike is met earlier by the batches that the first has left out.
    first, second = refused, nonsense - (BEFORE + AFTER)
    rows = tuple((ROWS * (batch - BEFORE), ROWS * (batch + AFTER)) for batch in (refused, nonsense))
    return types.SimpleNamespace(
        not_finite=tuple((row, row + 1) for row in (ROWS * refused + 3, ROWS * again)),
        nonsense=((ROWS * nonsense, ROWS * (nonsense + width)),),
        rows=rows,
        plan=[(spike, _checkpoint(spike), (skipped,)) for spike, skipped in zip((first, second), rows, strict=True)],
        moment=generator.choice(MOMENTS),
        intervention=generator.choice((1, 2)),
    )


def _checkpoint(spike):
    return (spike - REWIND) // SAVE_EVERY * SAVE_EVERY


def _end(path):
    return read_metrics(path).series["train/loss"].values[-10:]


def test_no_checkpoint_to_go_back_to(runner, common, tmp_path):
    whole, never, killed = (tmp_path / name for name in ("whole", "never", "killed"))
    train = {**common, "CheckpointConfig__save_every_steps": 0, "Poisoned__not_finite": ()}
    process = runner.run("train", POISONED, MODEL_DIR=str(whole), **train)
    (intervention,) = load_interventions(whole)
    assert (intervention.spike_step, intervention.rewind_to) == (40, 0)
    assert "the run goes back to its beginning" in process.err
    skip = {"SKIP_ROWS": intervention.skip_rows}
    runner.run("train", POISONED, MODEL_DIR=str(never), **common, **SOUND, **skip)
    _kill(runner, killed, train, "after the line", 1)
    for other in (never, killed):
        assert fingerprints(other, STEPS) == fingerprints(whole, STEPS)
        check_same_metrics(other, whole)


def test_told_to_stop_at_every_moment(runner, common, tmp_path, record_property):
    """SIGTERM at the step of a spike or while the run goes back: nothing is saved of the course that is given up."""
    whole = tmp_path / "whole"
    runner.run("train", POISONED, MODEL_DIR=str(whole), **common)
    moments = [moment for moment in MOMENTS if moment != "half a line"]  # Only a kill leaves that.
    for moment in moments:
        stopped, codes = tmp_path / moment, []
        train = {**common, "MODEL_DIR": str(stopped)}
        for environment in ({"STOP_AT": moment}, {}):
            process = runner.start("train", POISONED, env=environment, **train)
            codes.append(process.wait())
        assert codes == [75, 0], process.err
        assert fingerprints(stopped, STEPS) == fingerprints(whole, STEPS), moment
        check_same_metrics(stopped, whole)
    record_property("cases", len(moments))
