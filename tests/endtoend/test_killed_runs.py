"""kill -9 at any step, and the same command again: the end is that of the run that was never killed."""

import signal

import pytest
from command_runner import check_same_metrics, devices, fingerprints, steps

STEPS = 12


def saving(model_dir, step):
    """A save of `step` has begun and is not committed."""
    return lambda process: list(model_dir.glob(f"checkpoints/{step}.orbax-checkpoint-tmp*"))


def says(text):
    return lambda process: text in process.out


def kill(process):
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_killed_everywhere(runner, source, finished, tmp_path):
    run = tmp_path / "run"
    train = {"MODEL_DIR": str(run), "MIXTURE_OR_TASK_NAME": source}
    moments = {
        "while the data is frozen or just before": lambda process: (run / "token_stores").exists(),
        "while the first step is compiled": lambda process: (run / "metrics" / "metrics.jsonl").exists(),
        "while the first save is written": saving(run, 3),
        "in the first evaluation": lambda process: "step  5/12" in process.out or 6 in steps(run),
        "in the middle of an interval": lambda process: 6 in steps(run),
        "just before the end": saving(run, STEPS),
        "in the last evaluation": lambda process: STEPS in steps(run),
    }
    unfinished = 0
    for name, moment in moments.items():
        kill(runner.start("train", anew="compiled" in name, **train).until(moment))
        unfinished += STEPS not in steps(run)
    assert unfinished >= 5, "killed too late to tell"
    runner.run("train", **train)
    assert fingerprints(run, STEPS) == fingerprints(finished.path, STEPS)
    check_same_metrics(run, finished.path)


VARIANTS = {
    "ramp and micro-batches": (1, {"BATCH_SIZE": ((0, 4), (7, 8)), "StepConfig__micro_batches": 2}),
    "eight devices": (8, {"MeshConfig__fsdp": 4, "MeshConfig__data": 2}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_variants(runner, source, tmp_path, variant):
    number, settings = VARIANTS[variant]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = {**settings, "MIXTURE_OR_TASK_NAME": source, "STORE_DIR": str(tmp_path / "stores")}
    settings |= {"EvaluationConfig__every_steps": 0}
    runner.run("train", env=devices(number), anew=True, MODEL_DIR=str(whole), **settings)
    kill(runner.start("train", env=devices(number), MODEL_DIR=str(killed), **settings).until(saving(killed, 6)))
    assert STEPS not in steps(killed)
    runner.run("train", env=devices(number), MODEL_DIR=str(killed), **settings)
    assert fingerprints(killed, STEPS) == fingerprints(whole, STEPS)
    check_same_metrics(killed, whole)


def test_told_to_stop(runner, source, finished, tmp_path):
    run = tmp_path / "run"
    train = {"MODEL_DIR": str(run), "MIXTURE_OR_TASK_NAME": source, "CheckpointConfig__save_every_steps": 0}
    codes = []
    for moment in (lambda process: (run / "run.json").exists(), says("step  5/12")):
        process = runner.start("train", **train).until(moment)
        process.kill(signal.SIGTERM)
        codes.append(process.wait())
        saved = steps(run)[-1]
        assert f"stopped at step {saved} and saved" in process.out
    assert codes == [75, 75]
    assert 5 <= saved < STEPS, "it stopped where it was told, and lost nothing"
    resumed = runner.run("train", **train)
    assert "step  5/12" not in resumed.out
    assert fingerprints(run, STEPS) == fingerprints(finished.path, STEPS)
    check_same_metrics(run, finished.path)


def test_another_seed_is_another_run(runner, source, finished, tmp_path):
    short = {"SEED": 1, "TRAIN_STEPS": 6, "EvaluationConfig__every_steps": 0}
    runner.run("train", MODEL_DIR=str(tmp_path), MIXTURE_OR_TASK_NAME=source, **short)
    ours, theirs = fingerprints(tmp_path, 6), fingerprints(finished.path, 6)
    params = [path for path in ours if path.startswith("params/")]
    assert [path for path in params if ours[path] == theirs[path]] == []
