"""One run of two processes on this machine: each with one device, talking over the loopback."""

import signal

from command_runner import check_same_metrics, fingerprints, steps

# A stop is agreed on some steps ahead, so there must be enough of them left.
STEPS = 60


def test_two_processes_are_killed_stopped_and_resumed(runner, source, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    settings = {"MIXTURE_OR_TASK_NAME": source, "STORE_DIR": str(tmp_path / "stores")}
    settings |= {"EvaluationConfig__every_steps": 0, "TRAIN_STEPS": STEPS}

    def start(directory):
        return runner.start_all(2, "train", MODEL_DIR=str(directory), **settings)

    undisturbed = start(whole)
    assert [process.wait() for process in undisturbed] == [0, 0], undisturbed[0].err
    assert "devices" in (whole / "metrics" / "metrics.jsonl").read_text().splitlines()[0]
    assert f"done: {STEPS} steps" in undisturbed[0].out
    assert "done" not in undisturbed[1].out

    killed = start(run)
    killed[0].until(lambda process: 3 in steps(run))
    for process in killed:
        process.kill()
    assert [process.wait() for process in killed] == [-signal.SIGKILL] * 2
    assert STEPS not in steps(run)

    # One of them is told to stop; both stop before the same step.
    stopped = start(run)
    stopped[0].until(lambda process: " parameters on " in process.out)
    stopped[1].kill(signal.SIGTERM)
    assert [process.wait() for process in stopped] == [75, 75]
    assert f"stopped at step {steps(run)[-1]} and saved" in stopped[0].out
    assert steps(run)[-1] < STEPS

    assert [process.wait() for process in start(run)] == [0, 0]
    assert fingerprints(run, STEPS) == fingerprints(whole, STEPS)
    check_same_metrics(run, whole)
