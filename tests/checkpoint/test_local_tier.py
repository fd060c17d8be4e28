"""The local tier in one process: preferred when it is newer and verifies, passed over otherwise."""

import errno
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_scale.checkpoint import multihost
from t5x_scale.checkpoint.config import CheckpointConfig
from t5x_scale.checkpoint.manager import CheckpointManager
from t5x_scale.core import files, patience
from t5x_scale.core.errors import UserError


def make_state(step, shape=(4, 2), spec=P("x", "y")):
    mesh = jax.make_mesh(shape, ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    kernel = np.random.default_rng(step).normal(size=(16, 32)).astype(np.float32)
    return {
        "params": {"kernel": jax.device_put(kernel, NamedSharding(mesh, spec))},
        "half": jax.device_put(np.full((8,), step, jnp.bfloat16), NamedSharding(mesh, P())),
        "step": jax.device_put(np.int32(step), NamedSharding(mesh, P())),
    }


def make_abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture
def config(tmp_path):
    return CheckpointConfig(save_every_steps=10, local_every_steps=2, local_directory=str(tmp_path / "local"))


@pytest.fixture
def run(tmp_path, config):
    """A run that was killed at step 16: 10 is in MODEL_DIR, 12, 14 and 16 were saved locally."""
    with CheckpointManager(tmp_path / "run", config) as manager:
        for step in range(1, 17):
            if manager.is_due(step):
                assert manager.save(step, make_state(step), {"row": step})
    return tmp_path / "run"


def local_steps(tmp_path):
    return sorted(int(path.name) for path in (tmp_path / "local").glob("*/0/*") if path.name.isdigit())


def restore(run, config, state=None):
    return CheckpointManager(run, config).restore(make_abstract(state or make_state(0)))


def test_the_newest_local_one_is_used(tmp_path, run, config):
    assert local_steps(tmp_path) == [14, 16], "one more than asked for"
    assert CheckpointManager(run, config).latest() == 16
    restored = restore(run, config)
    assert (restored.step, restored.metadata["row"]) == (16, 16)
    jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(16))
    sharding = make_state(0)["params"]["kernel"].sharding
    assert restored.state["params"]["kernel"].sharding == sharding


def test_a_place_that_cannot_be_a_directory_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for place in ("file", "file/below/it", "dangling", "dangling/below"):
        config = CheckpointConfig(local_directory=str(tmp_path / place))
        with pytest.raises(UserError, match=f"local_directory is {tmp_path / place}, .* is no directory"):
            CheckpointManager(tmp_path / "run", config)
    CheckpointManager(tmp_path / "run", CheckpointConfig(local_directory=str(tmp_path / "new" / "local")))
    assert not (tmp_path / "new").exists(), "nothing is created yet"


def test_without_a_local_directory_nothing_is_known_of_it(run):
    assert CheckpointManager(run).latest() == 10
    assert CheckpointManager(run).steps() == [10]


@pytest.mark.parametrize("victim", ["shards", "metadata/metadata"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_damage_falls_back_to_the_one_before(tmp_path, run, config, victim, how, caplog):
    file = next((tmp_path / "local").glob(f"*/0/16/{victim}"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink() if how == "gone" else file.write_bytes(data if how == "flip" else data[:-5])
    restored = restore(run, config)
    assert restored.step == 14
    jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(14))
    assert "of step 16" in caplog.text


def test_shards_that_may_not_be_read_are_passed_over(run, config, monkeypatch, caplog):
    """There is another copy: whatever keeps this one from being read does not matter."""

    def read(file, *unused, **named):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(np, "fromfile", read)
    assert restore(run, config).step == 10
    said = [line for line in caplog.messages if "Permission denied" in line]
    assert len(said) == 2, "a line for each copy"
    assert "the checkpoint of step 16" in said[0]
    assert "of the local copies its shards cannot be read: Permission denied. Falling back to step 14" in said[0]


def test_local_copies_are_not_forgotten_as_model_dir_is_away(run, config, monkeypatch):
    kind, calls = type(files.to_path("/a")), []
    usual = kind.read_text

    def read(path, *given, **named):
        calls.append(path.name)
        if len(calls) == 1:
            raise ConnectionResetError(104, "Connection reset by peer")
        return usual(path, *given, **named)

    monkeypatch.setattr(kind, "read_text", read)
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    assert restore(run, config).step == 16
    assert calls[:2] == ["run_id", "run_id"]


def test_damaged_interventions_end_all(run, config, monkeypatch):
    """In another process, too, which would wait for this one's list."""
    seen = UserError("line 1 is damaged (process 1 of 2)")
    lists = []
    monkeypatch.setattr(multihost, "common_steps", lambda steps: lists.append(steps) or steps)
    manager = CheckpointManager(run, config)
    assert manager.latest() == 16
    lists.clear()
    (run / "interventions.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"line 1 of .* is damaged"):
        manager.latest()
    (run / "interventions.jsonl").unlink()
    answers = [None, seen]  # To the list of MODEL_DIR, and to the lines.
    monkeypatch.setattr(multihost, "share_error", lambda error: answers.pop(0))
    with pytest.raises(UserError, match="process 1 of 2"):
        manager.latest()
    assert not lists


def test_all_local_ones_damaged(tmp_path, run, config):
    for file in (tmp_path / "local").glob("*/0/*/shards"):
        file.write_bytes(file.read_bytes()[::-1])
    assert restore(run, config).step == 10


def test_a_place_that_cannot_be_listed_is_passed_over(tmp_path, run, config, caplog):
    """An error here would leave the other processes waiting for this one's list."""
    [own] = (tmp_path / "local").glob("*/0")
    shutil.rmtree(own)
    own.write_text("")
    assert restore(run, config).step == 10
    assert "cannot be listed, and so its local checkpoints are not used: Not a directory" in caplog.text


def test_the_same_shards_on_another_mesh_do(run, config):
    restored = restore(run, config, make_state(0, (2, 4), P("y", "x")))
    assert restored.step == 16
    jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(16))


def test_other_shards_take_the_remote_one(run, config, caplog):
    restored = restore(run, config, make_state(0, (8, 1)))
    assert restored.step == 10
    jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(10))
    assert "another mesh, or of another number of processes" in caplog.text


def test_another_run_in_the_same_place_is_not_confused(tmp_path, run, config):
    shutil.rmtree(run)
    with CheckpointManager(run, config) as manager:
        assert manager.latest() is None
        manager.save(10, make_state(99), {"row": 10})
    assert restore(run, config).step == 10
    assert int(restore(run, config).state["step"]) == 99


def test_a_course_that_was_left_is_not_gone_back_to(run, config):
    line = {"number": 1, "spike_step": 13, "reason": "test", "rewind_to": 10, "skip_rows": [[80, 96]], "time": 1.0}
    (run / "interventions.jsonl").write_text(json.dumps(line) + "\n")
    assert CheckpointManager(run, config).latest() == 10
    assert restore(run, config).step == 10


def test_a_local_step_that_is_stopped_at_is_saved_remotely(run, config):
    with CheckpointManager(run, config) as manager:
        restored = manager.restore(make_abstract(make_state(0)))
        assert manager.save(16, restored.state, {"row": 16}, force=True)
        manager.wait()
        assert not manager.save(16, restored.state, {"row": 16}, force=True)
        assert manager.steps() == [10, 16]


def test_nothing_local_counts_before_something_is_in_model_dir(tmp_path, config):
    with CheckpointManager(tmp_path / "run", config) as manager:
        manager.save(2, make_state(2), {})
        manager.wait()
        assert manager.latest() is None
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        restore(tmp_path / "run", config)


def test_a_full_local_disk_is_said_once_and_ends_nothing(tmp_path, config, caplog):
    with CheckpointManager(tmp_path / "run", config) as manager:
        (tmp_path / "local").write_text("in the way")
        for step in (2, 4, 10):
            manager.save(step, make_state(step), {})
    assert caplog.text.count("the local checkpoint of step") == 1
    assert CheckpointManager(tmp_path / "run").latest() == 10


def test_the_state_may_be_donated(tmp_path, config):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    with CheckpointManager(tmp_path / "run", config) as manager:
        manager.save(10, make_state(10), {})
        state = make_state(12)
        manager.save(12, state, {})
        advance(state)
    restored = restore(tmp_path / "run", config)
    assert restored.step == 12
    assert pathlib.Path(tmp_path / "run" / "checkpoints" / "run_id").exists()


def test_the_number_of_a_run_is_not_replaced_as_model_dir_is_away(run, config, monkeypatch, caplog):
    number = (run / "checkpoints" / "run_id").read_text()
    usual = os.stat

    def stat(path, *given, **named):
        if str(path).endswith("run_id"):
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out", path)
        return usual(path, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        assert restore(run, config).step == 16
    kind = type(files.to_path("/a"))

    def read(path, *unused, **named):
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out", path)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "read_text", read)
        with CheckpointManager(run, config) as manager:
            manager.save(18, make_state(18), {})
    assert "run_id cannot be used, and so no local checkpoints" in caplog.text
    assert (run / "checkpoints" / "run_id").read_text() == number
