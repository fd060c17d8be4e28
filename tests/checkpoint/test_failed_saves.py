"""Saves that fail: said in a line, survived, and no checkpoint that is not whole."""

import itertools
import logging
import os
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.checkpoint.config import CheckpointConfig
from t5x_scale.checkpoint.manager import CheckpointManager
from t5x_scale.core.errors import UserError

EVERY = CheckpointConfig(save_every_steps=1, keep=None)


def make_state(step):
    # Random, so that it takes its room on a disk.
    return {"kernel": jnp.asarray(np.random.default_rng(step).normal(size=(256, 256)), jnp.float32)}


def make_abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make_state(0))


@pytest.fixture
def break_storage(monkeypatch):
    """A function that makes every commit of a manager fail from now on, or makes them work again."""

    def fail(*unused, **unused_too):
        raise OSError("No space left on device\nand a second line")

    def turn(manager, broken):
        handler = manager._saver._checkpointer._handler
        monkeypatch.setattr(handler, "finalize", fail) if broken else monkeypatch.undo()

    return turn


def names(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def test_the_run_goes_on_and_saves_the_next(tmp_path, break_storage, caplog):
    with CheckpointManager(tmp_path, EVERY) as manager:
        manager.save(1, make_state(1), {})
        manager.wait()
        break_storage(manager, True)
        assert manager.save(2, make_state(2), {})
        manager._saver._thread.join()
        assert "the checkpoint of step 2" in caplog.text, "said when it happens, not at the next save"
        break_storage(manager, False)
        assert manager.save(3, make_state(3), {})
        manager.wait()
        assert names(tmp_path) == ["1", "3"]
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(lines) == 1
    assert lines[0].endswith("NOT saved: No space left on device")


@pytest.mark.parametrize("day", [86400.0, -86400.0])
def test_a_clock_that_jumps_a_day_fails_no_save(tmp_path, monkeypatch, day):
    """Whoever looks at the clock twice sees a day between, as he may while it is being set."""
    honest, looks = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: honest() + day * next(looks))
    with CheckpointManager(tmp_path, EVERY) as manager:
        manager.save(1, make_state(1), {})
        manager.wait()
    assert names(tmp_path) == ["1"]


def test_what_went_wrong_is_told_for_the_record(tmp_path, break_storage):
    told = []
    with CheckpointManager(tmp_path, EVERY) as manager:
        manager.save(1, make_state(1), {})
        manager.wait()
        break_storage(manager, True)
        manager.save(2, make_state(2), {})
        manager.wait(is_last=False)
        break_storage(manager, False)
        manager.report_to(lambda kind, step, **details: told.append((kind, step, details)))
        manager.save(3, make_state(3), {})
    assert told == [("save_failed", 2, {"reason": "No space left on device"})]
    (tmp_path / "checkpoints" / "3" / "metadata" / "metadata").unlink()
    manager = CheckpointManager(tmp_path, EVERY)
    manager.restore(make_abstract())
    manager.report_to(lambda kind, step, **details: told.append((kind, step, details)))
    assert told[1][:2] == ("fallback", 3)
    assert "metadata" in told[1][2]["reason"]


def test_the_same_step_can_be_tried_again(tmp_path, break_storage):
    with CheckpointManager(tmp_path, EVERY) as manager:
        manager.save(1, make_state(1), {})
        manager.wait()
        break_storage(manager, True)
        manager.save(2, make_state(2), {})
        manager._saver._thread.join()
        break_storage(manager, False)
        assert manager.save(2, make_state(2), {}, force=True)
    assert names(tmp_path) == ["1", "2"]


def test_too_many_in_a_row_end_the_run(tmp_path, break_storage):
    manager = CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1, keep=1, max_failed_saves=2))
    for step in (1, 2):
        manager.save(step, make_state(step), {})
    manager.wait()
    break_storage(manager, True)
    manager.save(3, make_state(3), {})
    manager.save(4, make_state(4), {})
    with pytest.raises(UserError, match=r"step 4 in .* failed \(the last of 2 in a row\): No space left on device$"):
        manager.save(5, make_state(5), {})
    assert manager.steps() == [2]
    break_storage(manager, False)
    manager.close()


def test_a_success_in_between_counts_anew(tmp_path, break_storage):
    manager = CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1, keep=None, max_failed_saves=2))
    with manager:
        manager.save(1, make_state(1), {})
        for step in (2, 4, 6):
            manager.wait()
            break_storage(manager, True)
            manager.save(step, make_state(step), {})
            manager._saver._thread.join()
            break_storage(manager, False)
            manager.save(step + 1, make_state(step), {})
    assert manager.steps() == [1, 3, 5, 7]


def test_a_directory_that_cannot_be_written_now(tmp_path, caplog):
    with CheckpointManager(tmp_path, EVERY) as manager:
        (tmp_path / "checkpoints").write_text("a file")
        assert not manager.save(1, make_state(1), {})
        assert "the checkpoint of step 1" in caplog.text
        (tmp_path / "checkpoints").unlink()
        assert manager.save(2, make_state(2), {})
        manager.wait()
    assert names(tmp_path) == ["2"]


LIMITED = """
import logging, resource, sys
import jax, jax.numpy as jnp, numpy as np
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.core.errors import UserError

logging.basicConfig(format="%(message)s")
manager = CheckpointManager(sys.argv[1], CheckpointConfig(save_every_steps=1, keep=1))
make_state = lambda s: {"kernel": jnp.asarray(np.random.default_rng(s).normal(size=(256, 256)), jnp.float32)}
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
manager.save(1, make_state(1), {})
manager.wait()
limit(100_000)
manager.save(2, make_state(2), {})
manager.save(3, make_state(3), {})
manager._saver._thread.join()
limit(resource.RLIM_INFINITY)
manager.save(4, make_state(4), {})
manager.wait()
print(manager.steps())
limit(100_000)
manager.save(5, make_state(5), {})
try:
    manager.wait()
except UserError as error:
    print(error)
print(manager.steps(), flush=True)
"""


def test_a_limit_of_the_size_of_files(tmp_path):
    """The storage library's own writes fail, in C++, as they do on a full disk or over a quota."""
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=120, env=os.environ
    )
    assert result.returncode == 0, result.stderr[-3000:]
    before, error, after = result.stdout.splitlines()
    assert before == after == "[4]"
    assert error.startswith("saving the checkpoint of step 5 in ")
    assert "File too large" in error
    said = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(said) == 3, result.stderr
    assert all("NOT saved" in line and "File too large" in line for line in said)
    restored = CheckpointManager(tmp_path).restore(make_abstract())
    np.testing.assert_array_equal(restored.state["kernel"], make_state(4)["kernel"])
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
