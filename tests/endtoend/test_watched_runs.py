"""Real runs that are watched over: a source of data that hangs, a clock that jumps, a slow host, and the report."""

import json
import time

import pytest
from command_runner import check_same_metrics, fingerprints, free_address, steps

from t5x_scale.monitor.metric_log import read_metrics
from t5x_scale.monitor.phases import read_phases


@pytest.fixture(scope="module")
def hung(runner, source, finished, tmp_path_factory):
    """A run whose source hung once, and which was started again."""
    run = tmp_path_factory.mktemp("hung") / "run"
    settings = {"MODEL_DIR": str(run), "MIXTURE_OR_TASK_NAME": source}
    begin = time.monotonic()
    ended = runner.run(
        "train", code=75, env={"PROCESS_HOOK": "hang_data:11"}, WatchdogConfig__timeout_seconds=1.5, **settings
    )
    ended.seconds = time.monotonic() - begin
    runner.run("train", **settings)
    return run, ended


def test_a_hung_source_is_ended_and_the_same_command_goes_on(hung, finished):
    run, ended = hung
    assert ended.seconds < 60
    assert "process_hooks.py" in ended.err
    assert ended.err.splitlines()[-1].startswith(
        "t5x_scale: error: nothing has moved for 2 s at step 11, in phase data_"
    )
    stacks = (run / "health" / "stacks_0.txt").read_text()
    assert "process_hooks.py" in stacks
    assert "commands/training/loop.py" in stacks
    assert fingerprints(run, 12) == fingerprints(finished.path, 12)
    check_same_metrics(run, finished.path)


def test_the_report_tells_the_life_of_it(runner, hung):
    run, _ = hung
    said = runner.run("report", str(run)).out
    for words in ("Where the time went", "watchdog: nothing had moved for", "steps done again later", "goodput"):
        assert words in said
    summary = json.loads((run / "report" / "summary.json").read_text())["life"]
    first, second = summary["processes"]
    assert first["reason"].startswith("watchdog")
    assert (first["first_step"], second["first_step"], second["last_step"], second["reason"]) == (0, 9, 12, "done")
    assert (first["last_step"], first["redone_steps"]) == (10, 1)
    assert summary["seconds"]["data_wait"] > 1.4
    assert 0 < summary["goodput"] < 1


def test_a_clock_that_jumps_a_day(runner, source, finished, tmp_path):
    run = tmp_path / "run"
    process = runner.run(
        "train",
        env={"PROCESS_HOOK": "jumping_clock:0.05"},
        MODEL_DIR=str(run),
        MIXTURE_OR_TASK_NAME=source,
        WatchdogConfig__timeout_seconds=20.0,
    )
    assert "NOT saved" not in process.err
    assert "nothing has moved" not in process.err
    assert steps(run) == steps(finished.path)
    assert fingerprints(run, 12) == fingerprints(finished.path, 12)
    check_same_metrics(run, finished.path)
    assert all(line["at"] < 1000 for line in read_phases(run))
    times = [event["time"] for event in read_metrics(run).events]
    assert times  # Whatever they are, the record can be read.


def test_a_slow_host_is_named(runner, source, tmp_path):
    """One of two processes gets its data half a second late: however busy the machine, a step takes less."""
    place = (f"--coordinator_address={free_address()}", "--num_processes=2")
    settings = {
        "MODEL_DIR": str(tmp_path / "run"),
        "MIXTURE_OR_TASK_NAME": source,
        "STORE_DIR": str(tmp_path / "stores"),
        "MAX_EPOCHS": None,
        "TRAIN_STEPS": 1_000_000,
        "EvaluationConfig__every_steps": 0,
        "CheckpointConfig__save_every_steps": 1_000_000,
        "HealthConfig__beat_seconds": 0.3,
        "StragglerConfig__window_seconds": 3.0,
    }
    processes = [
        runner.start("train", *place, f"--process_id={index}", env=env, **settings)
        for index, env in enumerate((None, {"PROCESS_HOOK": "slow_data:0.5"}))
    ]
    try:
        processes[0].until(lambda process: "slow: process 1 (data " in process.out)
        # On a busy machine the other one may be slow for a while, too.
        events = [event for event in read_metrics(tmp_path / "run").events if event["event"] == "straggler"]
        assert 1 in [event["process"] for event in events]
        assert "process 1 on " in processes[0].err
    finally:
        for process in processes:
            process.kill()
            process.wait()
