"""Two processes and one checkpoint: saved by time, read back by both, failed in one, kept in the memory of each."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from command_runner import free_address

PRELUDE = """
import json, logging, os, resource, sys, threading, time
import jax, numpy as np
from t5x_scale.checkpoint import multihost
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.core.distributed import join_run
from t5x_scale.core.errors import UserError

logging.basicConfig(format="%(message)s")
join_run()
run, index = sys.argv[1], jax.process_index()
mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.P("x"))

def make_state(step):
    kernel = np.random.default_rng(step).normal(size=(256, 256)).astype(np.float32)
    return {"kernel": jax.make_array_from_callback(kernel.shape, sharding, lambda box: kernel[box])}

def make_abstract():
    return {"kernel": jax.ShapeDtypeStruct((256, 256), np.float32, sharding=sharding)}

def is_right(state, step):
    box = state["kernel"].addressable_shards[0]
    return bool((np.asarray(box.data) == np.asarray(make_state(step)["kernel"].addressable_shards[0].data)).all())

def say(**values):
    print(json.dumps(values), flush=True)
"""

BY_TIME = """
config = CheckpointConfig(save_every_steps=0, save_every_seconds=0.4, check_time_every_steps=5, keep=None)
# The date of one process jumps, and the other's monotonic clock runs a hundred times as fast: only one clock counts.
time.time = lambda: 1e9 * (index + 1)
if index == 1:
    monotonic = time.monotonic
    time.monotonic = lambda: 100 * monotonic()
saved = []
with CheckpointManager(run, config) as manager:
    for step in range(1, 61):
        if manager.is_due(step):
            assert manager.is_due(step)
            manager.save(step, make_state(step), {})
            saved.append(step)
        time.sleep(0.03)
say(saved=saved)
"""

READ_BACK = """
config = CheckpointConfig(save_every_steps=1, keep=1)
with CheckpointManager(run, config) as manager:
    for step in range(1, 4):
        manager.save(step, make_state(step), {})
        manager.wait()
    multihost.synchronise("read back")
    say(steps=manager.steps(), proven=manager._keeper.newest_proven([1, 2, 3]))
"""

FAILING = """
config = CheckpointConfig(save_every_steps=1, keep=None, max_failed_saves=2)
begun = time.monotonic()
manager = CheckpointManager(run, config)
manager.save(1, make_state(1), {})
manager.wait()
if index == int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
manager.save(2, make_state(2), {})
manager._saver._thread.join()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
manager.save(3, make_state(3), {})
manager.wait()
say(steps=manager.steps(), failures=manager._failures, seconds=time.monotonic() - begun)
manager.close()
"""

LOCAL = """
config = CheckpointConfig(save_every_steps=10, keep=None, local_every_steps=2, local_directory=sys.argv[2])
with CheckpointManager(run, config) as manager:
    step = 0
    if manager.latest() is not None:
        restored = manager.restore(make_abstract())
        assert is_right(restored.state, restored.step)
        step = restored.step
    say(step=step, latest=manager.latest() or 0)
    for number in range(step + 1, step + 8):
        if manager.is_due(number):
            manager.save(number, make_state(number), {})
"""


@pytest.fixture
def pair(tmp_path):
    """Runs a script in two processes; returns what they said last, and their errors."""

    def run(script, *words, count=2):
        place = {"JAX_COORDINATOR_ADDRESS": free_address(), "JAX_NUM_PROCESSES": str(count), "JAX_PLATFORMS": "cpu"}
        processes = []
        for index in range(count):
            env = {**os.environ, **place, "JAX_PROCESS_ID": str(index), "XLA_FLAGS": ""}
            local = [word.replace("INDEX", str(index)) for word in map(str, words)]
            command = [sys.executable, "-c", PRELUDE + script, str(tmp_path / "run"), *local]
            processes.append(
                subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        try:
            streams = [process.communicate(timeout=90) for process in processes]
        finally:
            for process in processes:
                process.kill()
        errors = [err for _, err in streams]
        assert [process.returncode for process in processes] == [0] * count, errors
        return [json.loads(out.splitlines()[-1]) for out, _ in streams], errors

    return run


def test_saves_by_time_are_agreed_upon(pair):
    (first, second), _ = pair(BY_TIME)
    assert first == second
    assert len(first["saved"]) >= 2
    assert not any(step % 5 for step in first["saved"])
    assert 5 not in first["saved"], "the fast clock does not count"


def test_both_read_back(pair):
    (first, second), errors = pair(READ_BACK)
    assert first == {"steps": [3], "proven": 3}, errors
    assert second["steps"] == [3]


@pytest.mark.parametrize("victim", [0, 1])
def test_one_cannot_write_its_part(pair, victim):
    """Both give the step up at once, and both save the next."""
    said, errors = pair(FAILING, victim)
    assert [answer["steps"] for answer in said] == [[1, 3], [1, 3]], errors
    assert [answer["failures"] for answer in said] == [0, 0]
    assert max(answer["seconds"] for answer in said) < 60
    assert "of step 2" in errors[victim]
    assert "File too large" in errors[victim]
    assert "NOT saved: another process could not write its part" in errors[1 - victim]


def test_local_copies(pair, tmp_path):
    """Each process has a memory of its own; one of them is lost with its machine."""
    memory = tmp_path / "memory_INDEX"
    assert [answer["step"] for answer in pair(LOCAL, memory)[0]] == [0, 0]
    # Nothing was in MODEL_DIR yet: what is local does not count.
    assert [answer["step"] for answer in pair(LOCAL, memory)[0]] == [0, 0]
    pair(LOCAL.replace("step + 8", "step + 16"), memory)
    assert [answer["step"] for answer in pair(LOCAL, memory)[0]] == [14, 14]
    shutil.rmtree(tmp_path / "memory_1")
    said, _ = pair(LOCAL, memory)
    assert [(answer["step"], answer["latest"]) for answer in said] == [(20, 20)] * 2
    # And so does a run of one process, whose shards would be others.
    assert pair(LOCAL, memory, count=1)[0][0]["step"] == 20
