"""A run begins from a checkpoint: changed on the way, placed in shards, with or without the optimiser's moments."""

import dataclasses
import errno
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import make_architecture, make_weights

from t5x_scale.beginning import Beginning
from t5x_scale.checkpoint.layout import flatten_leaves
from t5x_scale.checkpoint.manager import CheckpointManager
from t5x_scale.conversion import sources, starting
from t5x_scale.conversion.output import write_checkpoint
from t5x_scale.conversion.starting import apply_transforms, start_from
from t5x_scale.core import patience
from t5x_scale.core.errors import UnavailableError, UserError
from t5x_scale.core.files import to_path
from t5x_scale.core.trees import flatten
from t5x_scale.models.assembly import to_model
from t5x_scale.optim import adamw, lion, palm_adafactor, schedules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program
from t5x_scale.surgery.depth import DepthUpscale, Stack

RATE = schedules.Cosine(peak=1e-2, total_steps=100, warmup_steps=0, floor_ratio=0.1)
SMALL = make_architecture(embed_dim=8, mlp_dim=16, vocab_size=24)
DEEP = SMALL.with_config(num_layers=6)


def make_runtime(architecture, optimizer=None):
    return Program(to_model(architecture), optimizer or adamw.AdamW(RATE), MeshConfig(fsdp=8)).make()


def begin(path, transforms, runtime, architecture, restore=False):
    opt_state = runtime.abstract_state.opt_state if restore else None
    return start_from(path, transforms, runtime.abstract_params, opt_state, architecture)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three steps of AdamW, whose state is known."""
    runtime = make_runtime(SMALL)
    state = runtime.init_state()
    transformation = runtime.program.optimizer.make(runtime.program.model.axes())
    for step in range(3):
        grads = jax.tree.map(lambda p, s=step: jnp.sin(p * 7 + s), state.params)
        updates, opt_state = transformation.update(grads, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        state = dataclasses.replace(state, params=params, opt_state=opt_state, step=state.step + 1)
    path = tmp_path_factory.mktemp("run")
    record = {"refused": {"model": runtime.program.model.architecture()}, "free": {"sequence_length": 32}}
    with CheckpointManager(path) as manager:
        manager.save(3, state, {"run": record}, force=True)
    return str(path), state


def test_moments_go_on_and_schedules_begin_again(run):
    path, state = run
    started = begin(path, (), make_runtime(SMALL), SMALL, restore=True)
    expected, found = flatten_leaves(state.opt_state), flatten_leaves(started.opt_state)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        wanted = jnp.zeros_like(array) if name == "2/count" else expected[name]
        np.testing.assert_array_equal(array, wanted, err_msg=name)
    assert int(found["0/count"]) == 3
    for name, array in flatten(started.params).items():
        np.testing.assert_array_equal(array, flatten(state.params)[name])


def test_a_surgery_on_the_way_takes_parameters_and_moments_along(run):
    path, state = run
    runtime = make_runtime(DEEP)
    started = begin(path, (DepthUpscale(num_removed=1),), runtime, DEEP, restore=True)
    order = [0, 1, 2, 1, 2, 3]
    kernel = "decoder/layers/mlp/wo/kernel"
    before = flatten(state.params)[kernel]
    np.testing.assert_array_equal(flatten(started.params)[kernel], before[jnp.array(order)])
    moment = flatten_leaves(started.opt_state)[f"0/nu/{kernel}"]
    np.testing.assert_array_equal(moment, flatten_leaves(state.opt_state)[f"0/nu/{kernel}"][jnp.array(order)])
    assert flatten(started.params)[kernel].sharding == flatten(runtime.abstract_params)[kernel].sharding
    assert "copied from decoder/layers/mlp/wo/kernel (layers 0-2, 1-3)" in started.report


def test_without_its_optimiser_it_begins_afresh(run):
    started = begin(run[0], (), make_runtime(SMALL), SMALL)
    assert started.opt_state is None


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lion.Lion(RATE), r"has the leaf 'opt_state/0/nu/.*', which this optimiser does not know; the same kind"),
        (palm_adafactor.PalmAdafactor(RATE), r"has no leaf 'opt_state/0/v/.*, which this optimiser needs.*INITIAL_"),
    ],
)
def test_the_state_of_another_optimiser_is_refused(run, optimizer, message):
    with pytest.raises(UserError, match=message):
        begin(run[0], (), make_runtime(SMALL, optimizer), SMALL, restore=True)


def test_a_state_that_is_not_there_is_refused(tmp_path):
    write_checkpoint(tmp_path / "new", make_weights(SMALL), source="a test")
    with pytest.raises(UserError, match="brings no optimiser state"):
        begin(str(tmp_path / "new"), (), make_runtime(SMALL), SMALL, restore=True)


def test_what_does_not_fit_the_model_is_named(run):
    path = run[0]
    with pytest.raises(UserError, match=r"has the shape \[4, .*the model needs \[6, "):
        begin(path, (), make_runtime(DEEP), DEEP)
    normed = dataclasses.replace(SMALL, qk_norm=True)
    with pytest.raises(UserError, match=r"has no parameter 'decoder/layers/self_attention/(query|key)_norm/scale'"):
        begin(path, (), make_runtime(normed), normed)
    tied = dataclasses.replace(SMALL, tied=True, logit_scale=1.0)
    with pytest.raises(UserError, match=r"has the parameter 'logits/kernel', which the model does not know"):
        begin(path, (), make_runtime(tied), tied)


def test_another_meaning_of_the_same_shapes_is_said(run, caplog):
    other = dataclasses.replace(SMALL, rope_base=5e5)
    with caplog.at_level(logging.WARNING):
        begin(run[0], (), make_runtime(other), other)
    assert "rope_base: 10000.0 -> 500000.0" in caplog.text


def test_choices_and_surgeries_are_checked(run):
    with pytest.raises(UserError, match=r"INITIAL_OPTIMIZER is 'restored' \(did you mean 'restore'"):
        Beginning("somewhere", (), "restored")
    with pytest.raises(UserError, match="set INITIAL_CHECKPOINT_PATH"):
        Beginning(None, (Stack(2),))
    with pytest.raises(UserError, match="is no surgery yet"):
        apply_transforms(make_weights(SMALL), ("DepthUpscale",))
    assert apply_transforms(make_weights(SMALL), (Stack(2), Stack(2))).leaves["logits/kernel"].shape == (8, 24)


def away(*unused, **named):
    raise TimeoutError(errno.ETIMEDOUT, "Connection timed out", "config.json")


def test_storage_that_is_away_is_asked_again(run, monkeypatch):
    usual, answers = starting.open_source, [away, away]
    monkeypatch.setattr(starting, "open_source", lambda *given, **named: (answers or [usual]).pop()(*given, **named))
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    assert begin(run[0], (), make_runtime(SMALL), SMALL).report.startswith("from ")
    assert not answers


@pytest.mark.parametrize("is_primary", [True, False])
def test_whatever_one_process_cannot_open_is_told_to_all(run, monkeypatch, is_primary):
    """One that opens it behind process 0, too."""
    told = []
    monkeypatch.setattr(starting, "open_source", away)
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(starting.multihost, "is_primary", lambda: is_primary)
    monkeypatch.setattr(starting.multihost, "share_error", lambda error: told.append(error) or error)
    monkeypatch.setattr(starting.multihost, "share_steps", lambda steps: [3])
    with pytest.raises(UnavailableError, match=r"config\.json: Connection timed out; nothing was changed"):
        begin(run[0], (), make_runtime(SMALL), SMALL)
    assert [error is None for error in told] == [False] * 4 if is_primary else [True, False, False, False, False]


def test_a_place_that_nobody_can_see_is_not_missing(run, monkeypatch):
    usual, asked = os.stat, []

    def stat(path, *given, **named):
        if str(path) == run[0]:
            asked.append(path)
            if len(asked) == 1:
                away()
        return usual(path, *given, **named)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    assert begin(run[0], (), make_runtime(SMALL), SMALL).report.startswith("from ")


def test_no_model_goes_without_its_tokenizer_as_that_is_away(tmp_path, monkeypatch):
    metadata = {"run": {"free": {"vocabulary": "/nfs/v.model"}}}
    assert sources._tokenizer(to_path(tmp_path), metadata) == {}

    def read(spec):
        raise UnavailableError("away")

    monkeypatch.setattr(sources, "tokenizer_files", read)
    with pytest.raises(UnavailableError, match="away"):
        sources._tokenizer(to_path(tmp_path), metadata)
