"""gs:// against a loopback fake of the storage API, in a process of its own: the clients read the environment once."""

import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from gcs import FakeStorage

pytest.importorskip("gcsfs")

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, sys
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.restore import restore_parameters
from t5x_scale.core import files

assert "tensorflow" not in sys.modules
run = "gs://bucket/runs/one"
mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.P("x"))

def make_state(step):
    kernel = np.random.default_rng(step).normal(size=(64, 128)).astype(np.float32)
    return {"params": {"kernel": jax.device_put(kernel, sharding)}, "step": jnp.int32(step)}

abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make_state(0))

def check(step):
    restored = CheckpointManager(run).restore(abstract)
    assert restored.step == step == restored.metadata["row"], (restored.step, step)
    np.testing.assert_array_equal(restored.state["params"]["kernel"], make_state(step)["params"]["kernel"])
    assert restored.state["params"]["kernel"].sharding == sharding

# Saved, kept by policy, restored.
with CheckpointManager(run, CheckpointConfig(save_every_steps=1, keep=2)) as manager:
    for step in (1, 2, 3):
        manager.save(step, make_state(step), {"row": step})
assert manager.steps() == [2, 3]
check(3)
params, report = restore_parameters(run, abstract["params"])
assert report.step == 3 and report.leaves[0].origin.source == "params/kernel"

# A save without its marker does not count, nor do flipped bytes.
checkpoints = files.to_path(run) / "checkpoints"
(checkpoints / "4" / "metadata").mkdir(parents=True)
(checkpoints / "4" / "metadata" / "metadata").write_text("{}")
check(3)
for part in (checkpoints / "3" / "state" / "ocdbt.process_0" / "d").iterdir():
    data = bytearray(part.read_bytes())
    data[len(data) // 3 :: 97] = bytes(len(data[len(data) // 3 :: 97]))
    part.write_bytes(bytes(data))
check(2)

# Going on from the older step sets the newer one aside.
with CheckpointManager(run, CheckpointConfig(save_every_steps=1, keep=2)) as manager:
    assert manager.restore(abstract).step == 2
    manager.save(3, make_state(3), {"row": 3})
assert manager.steps() == [2, 3]
assert (checkpoints / "3.set_aside" / "state" / "_METADATA").exists() and not (checkpoints / "4").exists()
check(3)
print("done")
"""


def test_checkpoints_on_an_object_store():
    with FakeStorage(["bucket"]) as storage:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **storage.environment()},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.strip() == "done"
        names = set(storage.buckets["bucket"])
    assert "runs/one/checkpoints/3/commit_success.txt" in names
    assert "runs/one/checkpoints/3.set_aside/commit_success.txt" not in names
    assert not any(name.startswith("runs/one/checkpoints/1/") for name in names)


STREAMED = """
import jax, numpy as np
from t5x_scale.checkpoint import layout
from t5x_scale.checkpoint.lazy_reader import read_lazily
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.stream_writer import write_stream
from t5x_scale.core import files, lazy
from t5x_scale.core.errors import UserError

run, converted = "gs://bucket/runs/one", "gs://bucket/converted"
kernel = np.random.default_rng(0).normal(size=(4, 32, 8)).astype(np.float32)
state = {"params": {"kernel": jax.numpy.asarray(kernel)}, "step": jax.numpy.int32(5)}
with CheckpointManager(run, CheckpointConfig(save_every_steps=1)) as manager:
    manager.save(5, state, {})
_, document, leaves = read_lazily(run)

# A conversion that fails leaves nothing, one that was killed leaves what does not count.
def fail(done, total):
    raise RuntimeError
try:
    write_stream(converted, 0, leaves, {}, on_progress=fail)
except RuntimeError:
    pass
checkpoints = files.to_path(converted) / "checkpoints"
assert not (checkpoints / "0").exists()
(checkpoints / "0" / "state").mkdir(parents=True)
(checkpoints / "0" / "state" / "_METADATA").write_text("{}")
assert layout.list_steps(checkpoints) == []

write_stream(converted, 0, leaves, document.metadata, max_block_bytes=1000)
assert layout.list_steps(checkpoints) == [0]
_, _, copied = read_lazily(converted)
np.testing.assert_array_equal(copied["params/kernel"].read((slice(1, 3),)), kernel[1:3])
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
np.testing.assert_array_equal(CheckpointManager(converted).restore(abstract).state["params"]["kernel"], kernel)
try:
    write_stream(converted, 0, leaves, {})
except UserError as error:
    assert "nothing was overwritten" in str(error)
else:
    raise AssertionError
print("done")
"""


def test_conversions_on_an_object_store():
    with FakeStorage(["bucket"]) as storage:
        result = subprocess.run(
            [sys.executable, "-c", STREAMED],
            env={**os.environ, **storage.environment()},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.strip() == "done"
