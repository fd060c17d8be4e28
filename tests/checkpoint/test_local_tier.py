"""The local tier in one process: preferred when it is newer and verifies, passed over otherwise."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_scale.checkpoint.config import CheckpointConfig
from t5x_scale.checkpoint.manager import CheckpointManager
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
