"""A checkpoint of every format that was ever written opens, verifies and restores, bit for bit."""

import pathlib
import sys
import zipfile

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "released"))

import make_released

from t5x_scale.checkpoint import layout, verifying
from t5x_scale.checkpoint.lazy_reader import read_lazily
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.restore import restore_parameters
from t5x_scale.core import files

HERE = pathlib.Path(make_released.__file__).parent
RELEASED = sorted(HERE.glob("*.zip"))
STEP = make_released.STEP


@pytest.fixture(params=RELEASED, ids=lambda path: path.stem)
def model_dir(request, tmp_path):
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def make_abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_every_format_up_to_this_one_is_here():
    names = {path.stem for path in RELEASED}
    for number in range(1, layout.FORMAT + 1):
        assert {f"format_{number}_run", f"format_{number}_converted"} <= names, "see the docstring of layout.py"


def test_it_verifies_without_devices(model_dir):
    verdict = verifying.verify_step(files.to_path(model_dir / "checkpoints" / str(STEP)))
    assert verdict.damage == ""
    assert (verdict.leaves, verdict.strangers) == (6, ())


def test_it_restores_and_the_run_goes_on(model_dir):
    state = make_released.make_state()
    with CheckpointManager(model_dir, CheckpointConfig(save_every_steps=1)) as manager:
        restored = manager.restore(make_abstract(state))
        assert (restored.step, restored.metadata["data"]) == (STEP, {"row": 56})
        jax.tree.map(np.testing.assert_array_equal, restored.state, make_released.make_leaves())
        assert manager.save(STEP + 1, restored.state, {})
    assert CheckpointManager(model_dir).steps() == [STEP, STEP + 1]


def test_another_run_begins_with_it(model_dir):
    params, _ = restore_parameters(model_dir, make_abstract(make_released.make_state()["params"]))
    jax.tree.map(np.testing.assert_array_equal, params, make_released.make_leaves()["params"])


def test_it_is_read_region_by_region(model_dir):
    _, document, leaves = read_lazily(model_dir)
    region = (slice(1, 3), slice(2, 5), slice(0, 8))
    expected = make_released.make_leaves()["params"]["decoder"]["kernel"][region]
    np.testing.assert_array_equal(leaves["params/decoder/kernel"].read(region), expected)
    assert document.leaves["opt_state/1/flags"].dtype == "bool"


def test_a_released_checkpoint_is_not_written_again():
    with pytest.raises(FileExistsError):
        make_released.write("format_1")
