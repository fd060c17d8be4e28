"""kill -9 while checkpoints are being written: what is there afterwards is whole, or is not a checkpoint."""

import subprocess
import sys

import jax
import numpy as np

from t5x_scale.checkpoint import layout
from t5x_scale.checkpoint.manager import CheckpointManager

# Importing takes seconds, so one process imports and then forks a run for every kill, before any of them
# touches a device. The state at a step is a function of the step: whoever restores it can tell if it is right.
PROGRAM = """
import os, random, signal, sys, time
import jax, jax.numpy as jnp
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager

def run(directory, say):
    manager = CheckpointManager(directory, CheckpointConfig(save_every_steps=1, keep=2))
    step = 0
    state = {"step": jnp.int32(0), "kernel": jnp.zeros((256, 512)), "other": jnp.ones((8, 3), jnp.bfloat16)}
    if manager.latest() is not None:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        restored = manager.restore(abstract)
        step, state = restored.step, restored.state
    advance = jax.jit(lambda s: {**s, "step": s["step"] + 1, "kernel": s["kernel"] + 1}, donate_argnums=0)
    while True:
        state, step = advance(state), step + 1
        manager.save(step, state, {"row": step})
        say(step)

directory, kills = sys.argv[1], int(sys.argv[2])
generator = random.Random(0)
for kill in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            run(directory, lambda step: os.write(write, b"%d " % step))
        finally:
            os._exit(1)
    os.close(write)
    said = os.read(read, 100)
    # Every other kill comes as soon as a save has begun, the rest at any time after.
    time.sleep(generator.uniform(0, 0.3) * (kill % 2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said += b"" if not said else b"".join(iter(lambda: os.read(read, 100), b""))
    os.close(read)
    print(said.decode().split()[-1] if said else "died", flush=True)
    sys.stdin.readline()
"""
KILLS = 10


def test_every_kill_leaves_a_checkpoint_that_verifies(tmp_path):
    shapes = {"step": ((), np.int32), "kernel": ((256, 512), np.float32), "other": ((8, 3), jax.numpy.bfloat16)}
    abstract = {name: jax.ShapeDtypeStruct(*leaf) for name, leaf in shapes.items()}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(KILLS)]
    unfinished, reached = 0, 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(KILLS):
            last_started = int(process.stdout.readline())
            manager = CheckpointManager(tmp_path)
            unfinished += bool(layout.list_leftovers(manager.directory))
            # Only the save that was running can be lost: it was announced, or about to be.
            assert (manager.latest() or 0) >= last_started - 1
            if manager.latest() is not None:
                restored = manager.restore(abstract)
                assert restored.step == manager.latest(), "whatever counts as a checkpoint verifies"
                assert int(restored.state["step"]) == restored.step == restored.metadata["row"]
                np.testing.assert_array_equal(restored.state["kernel"], np.full((256, 512), restored.step, np.float32))
                reached = restored.step
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert unfinished, "no kill hit a save: the test tests nothing"
    assert reached, "no save was ever finished: the test tests nothing"
