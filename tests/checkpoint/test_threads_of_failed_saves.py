"""A save whose directory cannot be made leaves no thread behind that a process would wait for at its end."""

import threading
import time

import jax.numpy as jnp

from t5x_scale.checkpoint.config import CheckpointConfig
from t5x_scale.checkpoint.manager import CheckpointManager

STATE = {"kernel": jnp.ones((64, 64))}


def others():
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]


def test_nothing_waits_for_a_directory_that_never_comes(tmp_path):
    before = set(others())
    manager = CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1, keep=None, max_failed_saves=99))
    manager.save(1, STATE, {})
    manager.wait()
    kept = tmp_path / "kept"
    (tmp_path / "checkpoints").rename(kept)
    (tmp_path / "checkpoints").touch()
    for step in (2, 3):
        manager.save(step, STATE, {})
        if manager._saver._thread is not None:  # The next one fails before it has begun.
            manager._saver._thread.join()
    (tmp_path / "checkpoints").unlink()
    kept.rename(tmp_path / "checkpoints")
    manager.save(4, STATE, {})
    manager.close()
    assert manager.steps() == [1, 4]
    deadline = time.monotonic() + 5.0
    while set(others()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(others()) - before
