"""Waiting for each other: with a name, as often as one likes, and not for ever."""

import os
import subprocess
import sys

import pytest
from command_runner import free_address

SCRIPT = """
import sys, time
import jax
from t5x_scale.checkpoint.multihost import synchronise
from t5x_scale.core.distributed import ProcessConfig, join_run, leave_run
from t5x_scale.core.errors import UserError

join_run(ProcessConfig(barrier_timeout_seconds=3))
for _ in range(3):
    synchronise("all are here")
print("met", flush=True)
if {late}:
    if jax.process_index() == 0:
        try:
            synchronise("one is late")
        except UserError as error:
            print(error, flush=True)
            leave_run(3, waiting=False)
    time.sleep(60)
"""


@pytest.fixture
def pair():
    """Starts two processes of `SCRIPT`; returns them."""
    processes = []

    def start(late):
        place = {"JAX_COORDINATOR_ADDRESS": free_address(), "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
        for index in range(2):
            env = {**os.environ, **place, "JAX_PROCESS_ID": str(index), "XLA_FLAGS": ""}
            words = [sys.executable, "-c", SCRIPT.format(late=late)]
            processes.append(subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True))
        return processes

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_all_meet(pair):
    assert [(process.communicate(timeout=60)[0].splitlines()[-1], process.returncode) for process in pair(False)] == [
        ("met", 0)
    ] * 2


def test_one_is_late(pair):
    waiting, _ = pair(True)
    said = waiting.communicate(timeout=60)[0].splitlines()
    assert waiting.returncode == 3
    assert said[-2] == "met"
    assert said[-1].startswith("waited up to 3 s for the others at 'one is late': another process of this run")
