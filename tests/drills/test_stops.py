"""SIGTERM to one of three processes: all stop before the same step with it saved, and the resume loses none."""

import json
import os
import random
import signal
import time

from command_runner import check_same_metrics, fingerprints, steps

from t5x_scale.monitor.phases import read_phases

PROCESSES, STOPS = 3, int(os.environ.get("DRILL") or 6)
ENDLESS = 10_000_000


def start_events(model_dir):
    """The step at which each life of the run began."""
    lines = map(json.loads, (model_dir / "metrics" / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line.get("event") == "start"]


def test_one_of_three_is_told_to_stop(runner, settings, tmp_path, record_property):
    run, whole = tmp_path / "run", tmp_path / "whole"
    settings = {**settings, "BATCH_SIZE": 6, "MeshConfig__data": PROCESSES, "MeshConfig__fsdp": 1}
    settings |= {"CheckpointConfig__save_every_steps": 0}

    def start(directory, until):
        return runner.start_all(PROCESSES, "train", MODEL_DIR=str(directory), TRAIN_STEPS=until, **settings)

    generator, saved = random.Random(3), [0]
    for number in range(STOPS):
        processes = start(run, ENDLESS)
        # While it starts, and in its steps: both are moments at which a machine may be taken away.
        lives = len(saved)
        processes[0].until(lambda process, lives=lives: _lives(run) == lives)
        if number % 2:
            processes[0].until(lambda process: " | loss " in process.out)
        time.sleep(generator.uniform(0.0, 3.0))
        processes[number % PROCESSES].kill(signal.SIGTERM)
        assert [process.wait() for process in processes] == [75] * PROCESSES, [process.err for process in processes]
        ends = [read_phases(run, process)[-1] for process in range(PROCESSES)]
        assert {line["phase"] for line in ends} == {"end"}
        assert {line["step"] for line in ends} == {steps(run)[-1]}, ends
        saved.append(steps(run)[-1])
        assert f"stopped at step {saved[-1]} and saved" in processes[0].out
        record_property("cases", number + 1)
    assert saved == sorted(saved)
    assert saved[-1] > saved[1]
    end = saved[-1] + 5
    for directory in (run, whole):
        processes = start(directory, end)
        assert [process.wait() for process in processes] == [0] * PROCESSES, processes[0].err
    # Every life began where the one before it stopped: nothing was done twice.
    assert start_events(run) == saved
    assert fingerprints(run, end) == fingerprints(whole, end)
    check_same_metrics(run, whole)
    record_property("passed", STOPS)
    record_property("shown", "stopped at " + ", ".join(map(str, saved[1:])))


def _lives(run):
    return sum(line["phase"] == "startup" and "pid" in line for line in read_phases(run)) if run.exists() else 0
