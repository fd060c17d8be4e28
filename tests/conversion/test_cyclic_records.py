"""A checkpoint whose record says that it began with itself is opened all the same, and does not go round for ever."""

import logging

import jax.numpy as jnp
import pytest

from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.conversion.sources import open_source


@pytest.mark.parametrize("length", [1, 2])
def test_a_circle_of_beginnings(tmp_path, caplog, length):
    caplog.set_level(logging.ERROR)
    places = [str(tmp_path / str(index)) for index in range(length)]
    for index, place in enumerate(places):
        run = {"recorded": {"initial_checkpoint_path": places[(index + 1) % length]}}
        with CheckpointManager(place, CheckpointConfig(save_every_steps=1)) as manager:
            manager.save(1, {"params": {"kernel": jnp.ones(4)}}, {"run": run})
    steps = open_source(places[0]).weights.recipe
    assert len(steps) <= length + 2
    assert "read" in steps[0]
