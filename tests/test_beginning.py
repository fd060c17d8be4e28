"""What a run begins with is checked before it begins."""

import logging
import pathlib
import sys

import pytest

from t5x_scale.beginning import Beginning, check_beginning
from t5x_scale.conversion.output import write_checkpoint
from t5x_scale.core.errors import UserError
from t5x_scale.models.assembly import to_model
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.frozen_layers import FrozenLayers
from t5x_scale.optim.groups import Groups
from t5x_scale.optim.schedules import Constant
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program
from t5x_scale.surgery.depth import ExpandBlocks

sys.path.insert(0, str(pathlib.Path(__file__).parent / "surgery"))
from toy import make_architecture, make_weights

SMALL = make_architecture(embed_dim=8, mlp_dim=16, vocab_size=24)
ADAMW = AdamW(Constant(0.1))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Four layers."""
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base", make_weights(SMALL), source="a test")


def check(base, num_layers, expand, **layers):
    optimizer = Groups(FrozenLayers(ADAMW, **layers), [("(?!decoder/layers/).*", {"freeze": True})])
    model = to_model(SMALL.with_config(num_layers=num_layers))
    runtime = Program(model, optimizer, MeshConfig(fsdp=8)).make()
    check_beginning(runtime, Beginning(str(base), (expand,)))


def test_the_new_layers_of_an_expanded_model_are_those_that_train(base, caplog):
    check(base, 6, ExpandBlocks(every=2), train_every=3)
    check(base, 6, ExpandBlocks(num_new=2), trained=[5, 2])
    check(base, 5, ExpandBlocks(every=3), trained=[3])
    assert not caplog.records


@pytest.mark.parametrize(
    ("num_layers", "every", "train_every", "message"),
    [
        (6, 2, 2, "made layers 2, 5, and FrozenLayers trains 1, 3, 5: set TRAIN_EVERY = 3, or list"),
        (5, 3, 1, "made layers 3, and FrozenLayers trains 0-4: set FrozenLayers.trained = [3], or list"),
    ],
)
def test_a_rhythm_that_misses_them_is_refused(base, num_layers, every, train_every, message):
    with pytest.raises(UserError) as error:
        check(base, num_layers, ExpandBlocks(every=every), train_every=train_every)
    assert message in str(error.value)


def test_a_list_of_other_layers_is_said(base, caplog):
    with caplog.at_level(logging.WARNING):
        check(base, 6, ExpandBlocks(every=2), trained=[2, 3])
    assert "made layers 2, 5, and FrozenLayers trains 2-3" in caplog.text
