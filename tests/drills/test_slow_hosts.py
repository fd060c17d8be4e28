"""One of several hosts is slow, and is named; on an even run none is."""

import signal
import threading
import time

import pytest
from command_runner import free_address

from t5x_scale.monitor.metric_log import read_metrics

WATCHED = {
    "TRAIN_STEPS": 1_000_000,
    "train__log_every_steps": 4,
    "CheckpointConfig__save_every_steps": 1_000_000,
    "HealthConfig__beat_seconds": 1.0,
    "StragglerConfig__window_seconds": 6.0,
    "StragglerConfig__probe_every_steps": 40,
}


def start(runner, settings, directory, count, hooks):
    """Starts the processes of a run, some of them with a hook, and waits until it steps."""
    place = (f"--coordinator_address={free_address()}", f"--num_processes={count}")
    processes = [
        runner.start(
            "train",
            *place,
            f"--process_id={index}",
            env={"PROCESS_HOOK": hooks[index]} if index in hooks else None,
            **{**settings, **WATCHED, "MODEL_DIR": str(directory), "MeshConfig__data": count, "BATCH_SIZE": 4 * count},
        )
        for index in range(count)
    ]
    processes[0].until(lambda process: " | loss " in process.out)
    return processes


def named(directory):
    return [event for event in read_metrics(directory).events if event["event"] == "straggler"]


def wait_for_names(directory, seconds):
    """The hosts named within so many seconds; returns as soon as there is one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not named(directory):
        time.sleep(0.2)
    return named(directory)


def stop(processes):
    for process in processes:
        if process.code is None:
            process.kill(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.mark.parametrize("victim", [0, 2])
def test_one_source_of_data_is_slow(runner, settings, tmp_path, victim):
    processes = start(runner, settings, tmp_path, 3, {victim: "slow_data:0.5"})
    try:
        events = wait_for_names(tmp_path, 60)
        assert {event["process"] for event in events} == {victim}
        assert events[0]["measure"] == "data"
        assert events[0]["ratio"] >= 2
        time.sleep(4)
        assert f"slow: process {victim} (data " in processes[0].out
        assert f"process {victim} on " in processes[0].err
    finally:
        stop(processes)


def test_one_process_gets_a_third_of_its_time(runner, settings, tmp_path):
    processes = start(runner, settings, tmp_path, 2, {})
    halt = threading.Event()

    def duty_cycle():
        while not halt.is_set():
            processes[1].kill(signal.SIGSTOP)
            time.sleep(0.04)
            processes[1].kill(signal.SIGCONT)
            time.sleep(0.02)

    thread = threading.Thread(target=duty_cycle)
    thread.start()
    try:
        events = wait_for_names(tmp_path, 90)
        assert {event["process"] for event in events} == {1}
    finally:
        halt.set()
        thread.join()
        stop(processes)


def test_an_even_run(runner, settings, tmp_path):
    processes = start(runner, settings, tmp_path, 3, {})
    try:
        assert wait_for_names(tmp_path, 30) == []
        assert "slow:" not in processes[0].out
    finally:
        stop(processes)
