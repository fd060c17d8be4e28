"""Runs of two processes in which something hangs, or whose clocks jump: they end in time and go on to the same bits."""

import signal
import time

import pytest
from command_runner import check_same_metrics, fingerprints, free_address

STEPS, LIMIT = 40, 4.0
# From the watchdog's limit on: how often it looks, what is said last, and a busy machine.
BOUND = LIMIT + 40.0


def start(runner, settings, directory, hooks):
    """Starts both processes, each with its hook."""
    place = (f"--coordinator_address={free_address()}", "--num_processes=2")
    given = {**settings, "MODEL_DIR": str(directory), "TRAIN_STEPS": STEPS, "CheckpointConfig__save_every_steps": 10}
    given["WatchdogConfig__timeout_seconds"] = LIMIT
    return [
        runner.start("train", *place, f"--process_id={i}", env={"PROCESS_HOOK": hook} if hook else None, **given)
        for i, hook in enumerate(hooks)
    ]


@pytest.fixture(scope="module")
def whole(runner, settings, tmp_path_factory):
    """The run that nothing disturbs."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert [process.wait() for process in start(runner, settings, directory, (None, None))] == [0, 0]
    return directory


@pytest.mark.parametrize("victim", [0, 1])
def test_one_source_hangs_and_the_other_process_waits_for_it(runner, settings, whole, tmp_path, victim):
    """The other hangs in a collective, inside C++; both end, and the same command goes on to the same bits."""
    run = tmp_path / "run"
    hooks = [None, None]
    hooks[victim] = "hang_data:25"
    processes = start(runner, settings, run, hooks)
    processes[victim].until(lambda process: (run / "checkpoints" / "20").exists())
    begin = time.monotonic()
    codes = [process.wait() for process in processes]
    assert time.monotonic() - begin < BOUND
    # Who is first leaves; JAX's runtime may abort the other before its own watchdog has come to it.
    assert 75 in codes
    assert set(codes) <= {75, -signal.SIGABRT}
    stacks = [(run / "health" / f"stacks_{i}.txt") for i in (0, 1)]
    assert any(path.exists() for path in stacks)
    assert [process.wait() for process in start(runner, settings, run, (None, None))] == [0, 0]
    assert fingerprints(run, STEPS) == fingerprints(whole, STEPS)
    check_same_metrics(run, whole)


def test_clocks_jump_by_a_day(runner, settings, whole, tmp_path):
    """Each process's clock by itself: metrics and saves go on, and the watchdog says nothing."""
    processes = start(runner, settings, tmp_path, ("jumping_clock:0.3", "jumping_clock:0.2"))
    assert [process.wait() for process in processes] == [0, 0], processes[0].err
    for process in processes:
        assert "NOT saved" not in process.err
        assert "nothing has moved" not in process.err
    assert fingerprints(tmp_path, STEPS) == fingerprints(whole, STEPS)
    check_same_metrics(tmp_path, whole)
