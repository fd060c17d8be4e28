"""Bad rows in the data: the run goes back, jumps over exactly what was planned, and may be killed meanwhile.

Every moment of it, rows at random, and what is left of them in the end: tests/drills/test_poisoned_batches.py.
"""

import json
import os
import pathlib
import shutil
import signal
import types

import numpy as np
import pytest
from command_runner import check_same_metrics, fingerprints, steps

from t5x_scale.checkpoint import layout
from t5x_scale.checkpoint.timeline import load_interventions
from t5x_scale.monitor.metric_log import read_metrics

POISONED = f"--gin_file={pathlib.Path(__file__).parent / 'poisoned.gin'}"
STEPS = 60
# Batches 16 to 27 around the updates that were refused, 36 to 47 around the nonsense; 8 rows each.
SKIPPED = [(128, 224), (288, 384)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def rewound(runner, source, stores, tmp_path_factory):
    """The run that goes back twice and is not disturbed in it: `path`, the `process`, and `rows` asked for."""
    path, log = tmp_path_factory.mktemp("rewound") / "run", stores / "rows"
    settings = {"MIXTURE_OR_TASK_NAME": source, "STORE_DIR": str(stores)}
    process = runner.run("train", POISONED, MODEL_DIR=str(path), env={"ROWS_LOG": str(log)}, **settings)
    rows = [[int(row) for row in line.split()] for line in log.read_text().splitlines()]
    return types.SimpleNamespace(path=path, process=process, rows=rows, settings=settings)


def losses(path):
    return read_metrics(path).series["train/loss"].values


def test_it_skips_what_was_planned(rewound):
    first, second = load_interventions(rewound.path)
    assert (first.spike_step, first.rewind_to, first.skip_rows) == (20, 10, (SKIPPED[0],))
    assert "not finite at steps 20, 24" in first.reason
    # After twelve batches were left out, batch 40 is that of step 28.
    assert (second.spike_step, second.rewind_to, second.skip_rows) == (28, 20, (SKIPPED[1],))
    assert "loss" in second.reason
    metadata = layout.read_document(layout.step_directory(rewound.path / layout.CHECKPOINTS, STEPS)).metadata
    assert metadata["data"]["skip"] == [list(rows) for rows in SKIPPED]
    assert metadata["timeline"] == 2
    # Two are kept by the policy, the others for spikes that may yet be found: 16 steps back, and the one before.
    assert steps(rewound.path) == [40, 45, 50, 55, 60]

    # What was asked for since it went back the last time: all rows from there on, and none that is bad or skipped.
    course = rewound.rows[max(i for i, rows in enumerate(rewound.rows) if rows[0] == 20 * 8 + 96) :]
    expected = [row for row in range(20 * 8 + 96, STEPS * 8 + 192) if not any(a <= row < b for a, b in SKIPPED)]
    assert [row for rows in course for row in rows][: len(expected)] == expected
    assert len(expected) == (STEPS - 20) * 8


def test_it_is_on_record(rewound):
    log = read_metrics(rewound.path)
    assert np.isfinite(losses(rewound.path)).all()
    np.testing.assert_array_equal(log.series["train/loss"].steps, np.arange(1, STEPS + 1))
    told = [(event["event"], event["step"]) for event in log.events if event["event"] in ("spike", "rewind", "skip")]
    assert told == [("spike", 25), ("rewind", 10), ("skip", 10), ("spike", 30), ("rewind", 20), ("skip", 20)]
    assert [event["step"] for event in log.events if event["event"] == "refused"] == [21, 25]
    assert "this update was refused" in rewound.process.out
    assert "went back to step 20, before the spike at step 28" in rewound.process.out


def test_the_result_is_that_of_a_run_that_never_saw_them(runner, rewound, tmp_path):
    never = {"SKIP_ROWS": tuple(SKIPPED), "Poisoned__nonsense": (), "Poisoned__not_finite": ()}
    runner.run("train", POISONED, MODEL_DIR=str(tmp_path), **rewound.settings, **never)
    assert not load_interventions(tmp_path)
    assert fingerprints(rewound.path, STEPS) == fingerprints(tmp_path, STEPS)
    check_same_metrics(rewound.path, tmp_path)


@pytest.mark.parametrize("damage", ["lost", "shortened", "pipe", "beyond"])
def test_damaged_interventions_are_refused_before_anything_is_written(runner, rewound, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(rewound.path, run)
    path = run / "interventions.jsonl"
    text = path.read_text()
    path.unlink()
    if damage == "shortened":
        path.write_text(text[:-9])
    elif damage == "pipe":
        os.mkfifo(path)
    elif damage == "beyond":
        third = {**json.loads(text.splitlines()[1]), "number": 3, "rewind_to": 1000, "spike_step": 900}
        path.write_text(f"{text}{json.dumps(third)}\n")
    before = contents(run)
    process = runner.run("train", POISONED, code=1, **{**rewound.settings, "MODEL_DIR": str(run)})
    assert process.err.count("\n") == 1, process.err
    message = {
        "lost": "fewer interventions (0)",
        "shortened": "fewer interventions (1)",
        "pipe": "no plain file",
        "beyond": "line 3 of",
    }[damage]
    assert message in process.err
    assert "interventions.jsonl" in process.err
    assert contents(run) == before


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_killed_while_it_goes_back(runner, rewound, tmp_path):
    train = {"MODEL_DIR": str(tmp_path), **rewound.settings}
    process = runner.start("train", POISONED, env={"DIE_AT": "one set aside"}, **train)
    assert process.wait() == -signal.SIGKILL, process.err
    runner.run("train", POISONED, **train)
    assert fingerprints(tmp_path, STEPS) == fingerprints(rewound.path, STEPS)
    check_same_metrics(tmp_path, rewound.path)
    assert [_decision(one) for one in load_interventions(tmp_path)] == [
        _decision(one) for one in load_interventions(rewound.path)
    ]


def _decision(intervention):
    return intervention.spike_step, intervention.reason, intervention.rewind_to, intervention.skip_rows


def test_it_stops_where_it_is_told_to(runner, rewound, tmp_path):
    train = {"MODEL_DIR": str(tmp_path), **rewound.settings}
    for policy, why in (
        ({"SPIKE_POLICY": "stop"}, "policy is 'stop'"),
        ({"SpikeGuard__max_rewinds": 1}, "gone back 1"),
    ):
        process = runner.run("train", POISONED, code=1, **train, **policy)
        assert why in process.err
        assert "Nothing was saved since" in process.err
    assert "stopped by a spike that began at step 28" in process.err
    assert len(load_interventions(tmp_path)) == 1
    runner.run("train", POISONED, **train)
    assert fingerprints(tmp_path, STEPS) == fingerprints(rewound.path, STEPS)
