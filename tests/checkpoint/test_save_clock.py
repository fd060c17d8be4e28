"""Saves by time in one process; tests/multiprocess has two, with clocks that disagree."""

import jax.numpy as jnp
import pytest

from t5x_scale.checkpoint.config import CheckpointConfig
from t5x_scale.checkpoint.manager import CheckpointManager
from t5x_scale.checkpoint.save_clock import SaveClock


class Clock:
    """Seconds that a test moves on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_due_by_time_at_the_steps_that_are_looked_at(clock):
    saves, due = SaveClock(60.0, 5, clock), []
    for step in range(1, 41):
        clock.now += 7.0
        if saves.is_due(step):
            due.append(step)
            saves.restart()
    assert due == [10, 20, 30, 40]


def test_asked_again_the_answer_is_the_same(clock):
    saves = SaveClock(60.0, 5, clock)
    assert not saves.is_due(5)
    clock.now += 100.0
    assert not saves.is_due(5), "all processes have been told no"
    assert saves.is_due(10)
    assert saves.is_due(10)
    saves.restart()
    assert not saves.is_due(10)


def test_without_a_time_nothing_is_due(clock):
    clock.now += 1e9
    assert not SaveClock(None, 1, clock).is_due(1)


def test_a_save_by_steps_counts_too(tmp_path, clock):
    config = CheckpointConfig(save_every_steps=8, save_every_seconds=60.0, check_time_every_steps=2, keep=None)
    with CheckpointManager(tmp_path, config) as manager:
        manager._clock._clock = clock
        manager._clock.restart()
        for step in range(1, 21):
            clock.now += 12.0
            if manager.is_due(step):
                assert manager.save(step, {"step": jnp.int32(step)}, {})
    assert manager.steps() == [6, 8, 14, 16]


def test_a_save_that_failed_is_tried_again_when_the_time_has_passed_once_more(tmp_path, clock):
    config = CheckpointConfig(save_every_steps=0, save_every_seconds=60.0, check_time_every_steps=1)
    (tmp_path / "checkpoints").write_text("in the way")
    with CheckpointManager(tmp_path, config) as manager:
        manager._clock._clock = clock
        manager._clock.restart()
        clock.now += 61.0
        assert manager.is_due(1)
        assert not manager.save(1, {"step": jnp.int32(1)}, {})
        (tmp_path / "checkpoints").unlink()
        assert not manager.is_due(2)
        clock.now += 61.0
        assert manager.is_due(3)
        assert manager.save(3, {"step": jnp.int32(3)}, {})
    assert manager.steps() == [3]
