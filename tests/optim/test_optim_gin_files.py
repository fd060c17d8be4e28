"""The files of gin/optim, alone: each defines OPTIMIZER, which makes a transformation."""

import pathlib

import gin
import jax.numpy as jnp
import numpy as np
import pytest

FILES = sorted((pathlib.Path(__file__).parents[2] / "gin" / "optim").glob("*.gin"))


@pytest.fixture(autouse=True)
def _clean_gin():
    yield
    gin.clear_config()


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_defines_a_working_optimizer(file):
    gin.clear_config()
    gin.parse_config_files_and_bindings([str(file)], ["TRAIN_STEPS = 10000"], finalize_config=False)
    optimizer = gin.query_parameter("%OPTIMIZER").configurable.wrapped
    scoped = gin.query_parameter("%OPTIMIZER").scoped_configurable_fn()
    assert isinstance(scoped, optimizer)
    assert 0 < float(scoped.learning_rate(3000)) <= 1e-2
    tx = scoped.make({"w": ("embed", "mlp")})
    params = {"w": jnp.ones((4, 4))}
    updates, _ = tx.update({"w": jnp.eye(4)}, tx.init(params), params)
    assert np.all(np.isfinite(updates["w"]))


def test_there_is_a_file_for_every_optimizer():
    assert {f.stem for f in FILES} >= {"palm_adafactor", "adafactor", "adamw", "lion", "muon"}
