"""One run of two processes on this machine: each with one device, talking over the loopback."""

import signal

from command_runner import check_same_metrics, fingerprints, steps

# A stop is agreed on a second or so ahead, in as many steps as the machine makes of it: until it is told to, the run
# has no end, and what it is compared with is as long as it turned out to be.
ENDLESS = 1_000_000


def test_two_processes_are_killed_stopped_and_resumed(runner, source, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    settings = {"MIXTURE_OR_TASK_NAME": source, "STORE_DIR": str(tmp_path / "stores"), "MAX_EPOCHS": None}
    settings |= {"EvaluationConfig__every_steps": 0, "CheckpointConfig__save_every_steps": 20}

    def start(directory, until):
        return runner.start_all(2, "train", MODEL_DIR=str(directory), TRAIN_STEPS=until, **settings)

    killed = start(run, ENDLESS)
    killed[0].until(lambda process: steps(run))
    for process in killed:
        process.kill()
    assert [process.wait() for process in killed] == [-signal.SIGKILL] * 2
    kept = steps(run)[-1]

    # One of them is told to stop; both stop before the same step.
    stopped = start(run, ENDLESS)
    stopped[0].until(lambda process: " | loss " in process.out)
    stopped[1].kill(signal.SIGTERM)
    assert [process.wait() for process in stopped] == [75, 75]
    last = steps(run)[-1]
    assert f"stopped at step {last} and saved" in stopped[0].out
    assert last > kept

    end = last + 5
    assert [process.wait() for process in start(run, end)] == [0, 0]
    undisturbed = start(whole, end)
    assert [process.wait() for process in undisturbed] == [0, 0], undisturbed[0].err
    assert "devices" in (whole / "metrics" / "metrics.jsonl").read_text().splitlines()[0]
    assert f"done: {end} steps" in undisturbed[0].out
    assert "done" not in undisturbed[1].out
    assert fingerprints(run, end) == fingerprints(whole, end)
    check_same_metrics(run, whole)
