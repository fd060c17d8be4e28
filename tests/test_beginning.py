"""What a run begins with is checked before it begins."""

import dataclasses
import logging
import pathlib
import sys

import pytest

from t5x_scale.beginning import Beginning, begin, check_beginning, load_parameters
from t5x_scale.conversion.output import write_checkpoint
from t5x_scale.core.errors import UserError
from t5x_scale.models.assembly import to_model
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.frozen_layers import FrozenLayers
from t5x_scale.optim.groups import Groups
from t5x_scale.optim.schedules import Constant
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program
from t5x_scale.surgery.depth import ExpandBlocks, SelectLayers, Stack

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
        (6, 2, 2, ", and FrozenLayers trains 1, 3, 5: set FrozenLayers.train_every (TRAIN_EVERY) to 3, or list what"),
        (5, 3, 1, ", and FrozenLayers trains 0-4: list what shall train in FrozenLayers.trained"),
    ],
)
def test_a_rhythm_that_misses_them_is_refused(base, num_layers, every, train_every, message):
    with pytest.raises(UserError) as error:
        check(base, num_layers, ExpandBlocks(every=every), train_every=train_every)
    assert message in str(error.value)
    assert f"block expansion made layers {'2, 5' if every == 2 else '3'} of {base}" in str(error.value)


def test_a_list_of_other_layers_is_said(base, caplog):
    with caplog.at_level(logging.WARNING):
        check(base, 6, ExpandBlocks(every=2), trained=[2, 3])
    assert f"made layers 2, 5 of {base}, and FrozenLayers trains 2-3" in caplog.text


def test_another_meaning_of_the_same_shapes_is_said(base, tmp_path, caplog):
    other = dataclasses.replace(SMALL, rope_base=5e5)
    runtime = Program(to_model(other), ADAMW, MeshConfig(fsdp=8)).make()
    for start in (
        lambda: begin(str(tmp_path), runtime, Beginning(str(base))),
        lambda: begin(str(tmp_path), runtime, Beginning(str(base), (Stack(2), SelectLayers([(0, 4)])))),
        lambda: load_parameters(runtime, str(base)),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            start()
        assert [message.split(": ", 1)[1] for message in caplog.messages] == ["rope_base: 10000.0 -> 500000.0"]
    caplog.clear()
    # Nor does it matter what is said of experts that the model has none of.
    same = dataclasses.replace(SMALL, gate_scale=2.0)
    write_checkpoint(tmp_path / "same", make_weights(same), source="a test")
    load_parameters(Program(to_model(SMALL), ADAMW, MeshConfig(fsdp=8)).make(), str(tmp_path / "same"))
    assert not caplog.messages
