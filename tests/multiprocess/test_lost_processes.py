"""A process that is gone or hangs takes the others with it, in a bounded time and with a line that says so."""

import signal
import time

import pytest
from command_runner import devices, free_address, steps

from t5x_scale.core import distributed

LOST = distributed.LOST
# 75 where Python came to know of it; JAX's runtime aborts the process otherwise.
ENDS = (75, -signal.SIGABRT)
HEARTBEAT = 10
# JAX looks for heartbeats now and then, and this machine may be busy.
BOUND = 60.0


@pytest.fixture
def endless(runner, settings, tmp_path):
    """Starts two processes of a run that would never end, and waits until it has saved a step."""
    given = {**settings, "MODEL_DIR": str(tmp_path / "run"), "TRAIN_STEPS": 1_000_000, "MAX_EPOCHS": None}
    given["ProcessConfig__heartbeat_timeout_seconds"] = HEARTBEAT
    processes = runner.start_all(2, "train", env=devices(4), **given)
    processes[0].until(lambda process: steps(tmp_path / "run"))
    yield processes
    for process in processes:
        if process.code is None:
            process.kill()
            process.wait()


def check_ends(process, codes, said):
    """Asserts that a process comes to its end by itself, saying why in its last line."""
    begin = time.monotonic()
    assert process.wait() in codes, process.err
    assert time.monotonic() - begin < BOUND
    process.until_said(said)
    last = process.err.splitlines()[-1]
    assert last.startswith("t5x_scale: error: ")
    assert said in last


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_is_killed(endless, victim):
    endless[victim].kill()
    check_ends(endless[1 - victim], ENDS, LOST)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_hangs(endless, victim):
    endless[victim].kill(signal.SIGSTOP)
    check_ends(endless[1 - victim], ENDS, LOST)


@pytest.mark.parametrize("index", [0, 1])
def test_the_other_never_comes(runner, settings, tmp_path, index):
    given = {**settings, "MODEL_DIR": str(tmp_path / "run"), "TRAIN_STEPS": 5}
    given["ProcessConfig__initialization_timeout_seconds"] = 5
    place = (f"--coordinator_address={free_address()}", "--num_processes=2", f"--process_id={index}")
    process = runner.start("train", *place, env=devices(4), **given)
    check_ends(process, (1, -signal.SIGABRT), "cannot join the other processes of this run")
    assert not (tmp_path / "run").exists()


def test_one_process_has_something_to_mend(runner, settings, tmp_path):
    given = {**settings, "MODEL_DIR": str(tmp_path / "run"), "TRAIN_STEPS": 5}
    given["ProcessConfig__heartbeat_timeout_seconds"] = HEARTBEAT
    place = (f"--coordinator_address={free_address()}", "--num_processes=2")
    right, wrong = (
        runner.start("train", *place, f"--process_id={index}", env=devices(4), **given, BATCH_SIZE=size)
        for index, size in ((0, 8), (1, 12))
    )
    check_ends(wrong, (1,), "does not divide over data=2 x fsdp=4 = 8 devices")
    check_ends(right, ENDS, LOST)


def test_half_of_a_place(runner, settings, tmp_path):
    process = runner.run("train", "--num_processes=2", code=1, MODEL_DIR=str(tmp_path), TRAIN_STEPS=5, **settings)
    assert process.err.startswith("t5x_scale: error: JAX_NUM_PROCESSES is set, and so must be JAX_COORDINATOR_ADDRESS")
    assert process.err.count("\n") == 1
