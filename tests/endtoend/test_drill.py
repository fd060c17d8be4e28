"""`make drill`: a longer run killed again and again at any time, compiled as users compile it."""

import os
import random
import signal
import time

import pytest
from command_runner import check_same_metrics, fingerprints, steps

STEPS, KILLS = 300, int(os.environ.get("DRILL") or 0)


@pytest.mark.skipif(not KILLS, reason="minutes of kills: make drill, or DRILL=20 for twenty of them")
def test_killed_at_random(runner, source, tmp_path):
    settings = {"MIXTURE_OR_TASK_NAME": source, "STORE_DIR": str(tmp_path / "stores"), "TRAIN_STEPS": STEPS}
    settings |= {"MAX_EPOCHS": 10.0, "EvaluationConfig__every_steps": 50, "CheckpointConfig__save_every_steps": 7}
    whole, run, env = tmp_path / "whole", tmp_path / "run", {"XLA_FLAGS": ""}
    start = time.monotonic()
    runner.run("train", env=env, MODEL_DIR=str(whole), **settings)
    generator, seconds, unfinished = random.Random(time.time_ns()), time.monotonic() - start, 0
    for _ in range(KILLS):
        process = runner.start("train", env=env, MODEL_DIR=str(run), **settings)
        time.sleep(generator.uniform(0, seconds))
        process.kill(generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        process.wait()
        unfinished += STEPS not in steps(run)
    assert unfinished
    runner.run("train", env=env, MODEL_DIR=str(run), **settings)
    assert fingerprints(run, STEPS) == fingerprints(whole, STEPS)
    check_same_metrics(run, whole)
