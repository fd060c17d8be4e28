"""What is never deleted: the newest checkpoint that is known to verify, and what a run may go back to."""

import threading

import jax
import jax.numpy as jnp
import pytest

from t5x_scale.checkpoint import read_back
from t5x_scale.checkpoint.config import CheckpointConfig
from t5x_scale.checkpoint.keeping import Keeper, choose_steps_to_delete, find_steps_since
from t5x_scale.checkpoint.manager import CheckpointManager
from t5x_scale.core import files

ONE = CheckpointConfig(save_every_steps=1, keep=1)


def make_state(step):
    return {"kernel": jnp.full((64, 64), step, jnp.float32)}


def make_abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make_state(0))


def save(manager, *steps):
    for step in steps:
        assert manager.save(step, make_state(step), {"row": step})
        manager.wait()


def rot(path):
    """Changes the content of every file of arrays."""
    for file in (path / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[::-1])


def test_steps_to_delete():
    config = CheckpointConfig(keep=1)
    assert choose_steps_to_delete([9, 1, 5], config, protected=[1]) == [5]
    assert choose_steps_to_delete([9], config) == []
    assert choose_steps_to_delete([1, 2], CheckpointConfig(keep=None)) == []


@pytest.mark.parametrize(
    ("since", "kept"), [(0, [3, 6, 9]), (5, [3, 6, 9]), (6, [6, 9]), (7, [6, 9]), (9, [9]), (50, [9])]
)
def test_steps_to_go_back_to(since, kept):
    assert find_steps_since([9, 3, 6], since) == kept


def test_nothing_goes_before_something_is_proven(tmp_path):
    keeper = Keeper(files.to_path(tmp_path), ONE)
    assert keeper.choose([1, 2, 3], 3) == []
    keeper.prove(1)
    assert keeper.choose([1, 2, 3], 3) == [2]
    keeper.prove(3)
    assert keeper.choose([1, 2, 3], 3) == [1, 2]
    keeper.disprove(3)
    assert keeper.choose([1, 2, 3], 3) == [2]


def test_the_last_that_verifies_outlives_the_policy(tmp_path, monkeypatch, caplog):
    """Every save after the first rots between its commit and the reading."""
    with CheckpointManager(tmp_path, ONE) as manager:
        save(manager, 1)
        begin = read_back.ReadBack.start

        def start(self, step, name):
            rot(tmp_path / "checkpoints" / str(step))
            begin(self, step, name)

        monkeypatch.setattr(read_back.ReadBack, "start", start)
        manager._saver._on_commit = lambda step, name: start(manager._read_back, step, name)
        save(manager, 2, 3, 4)
        assert manager.steps() == [1, 4]
    assert caplog.text.count("does NOT read back") == 3
    assert CheckpointManager(tmp_path).restore(make_abstract()).step == 1


def test_what_was_restored_stays_until_a_newer_one_is_proven(tmp_path):
    with CheckpointManager(tmp_path, ONE) as manager:
        save(manager, 1)
    with CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1, keep=1, read_back=False)) as manager:
        assert manager.restore(make_abstract()).step == 1
        save(manager, 2, 3)
        assert manager.steps() == [1, 3]


def test_without_reading_back_a_new_run_keeps_as_many_as_asked(tmp_path):
    with CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1, keep=2, read_back=False)) as manager:
        save(manager, 1, 2, 3)
        assert manager.steps() == [2, 3]


def test_a_run_keeps_what_it_may_go_back_to(tmp_path):
    with CheckpointManager(tmp_path, ONE) as manager:
        save(manager, 1, 2)
        manager.keep_since(2)
        save(manager, 3, 4)
        assert manager.steps() == [2, 3, 4]
        manager.keep_since(3)
        manager.wait()
        assert manager.steps() == [3, 4]
        manager.keep_since(None)
        manager.wait()
        assert manager.steps() == [4]


def test_one_that_is_committed_while_another_is_read_is_left_out(tmp_path, monkeypatch):
    wait, read = threading.Event(), []
    original = read_back.ReadBack._read

    def slowly(self, path):
        read.append(int(path.name))
        wait.wait(10)
        return original(self, path)

    monkeypatch.setattr(read_back.ReadBack, "_read", slowly)
    with CheckpointManager(tmp_path, ONE) as manager:
        for step in (1, 2, 3):
            manager.save(step, make_state(step), {})
        manager._saver.finish()
        assert manager.steps() == [1, 2, 3], "saves do not wait for the reading, and nothing is proven yet"
        wait.set()
        manager.wait()
        assert manager.steps() == [1, 3], "1 is proven, and 3 the newest"
        save(manager, 4)
        assert manager.steps() == [4]
    assert read == [1, 4]


def test_a_run_that_ends_by_an_error_does_not_read_to_the_end(tmp_path, monkeypatch, caplog):
    reading = threading.Event()
    original = read_back.ReadBack._read

    def wait_for_the_end(self, path):
        reading.set()
        self._cancelled.wait(10)
        return original(self, path)

    monkeypatch.setattr(read_back.ReadBack, "_read", wait_for_the_end)
    manager = CheckpointManager(tmp_path, ONE)

    def run():
        with manager:
            manager.save(1, make_state(1), {})
            assert reading.wait(10)
            raise RuntimeError("of the run")

    with pytest.raises(RuntimeError, match="of the run"):
        run()
    assert manager.steps() == [1]
    assert caplog.text == ""
