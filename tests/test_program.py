"""From a configuration to what runs on a mesh."""

import dataclasses
import functools
import time

import jax
import numpy as np
import pytest

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder
from t5x_scale.models.interface import DecoderModel
from t5x_scale.optim import schedules
from t5x_scale.optim.frozen_layers import FrozenLayers
from t5x_scale.optim.palm_adafactor import PalmAdafactor
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program, Runtime
from t5x_scale.step import METRICS, StepConfig

CONFIG = ModelConfig(
    num_layers=2, embed_dim=8, mlp_dim=16, num_heads=4, num_kv_heads=1, head_dim=4, vocab_size=12, dtype="float32"
)
PROGRAM = Program(
    DecoderModel(CONFIG, Decoder),
    PalmAdafactor(schedules.Constant(0.01)),
    MeshConfig(fsdp=4, model=2),
    rules.fsdp_model(),
    StepConfig(micro_batches=2, loss_chunk_length=4),
)


@functools.cache
def runtime():
    return PROGRAM.make()


@functools.cache
def initial_state():
    return runtime().init_state()


def test_abstract_state_is_the_real_one():
    """Checkpoints are restored into the abstract state: structure, shapes, dtypes and places must agree."""
    abstract, state = runtime().abstract_state, initial_state()
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for wanted, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (wanted.shape, wanted.dtype) == (leaf.shape, leaf.dtype)
        assert wanted.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
    assert int(state.step) == 0


def test_places_follow_the_rules():
    params = flatten(initial_state().params)
    kernel = params["decoder/layers/mlp/wi_0/kernel"]
    assert kernel.shape == (2, 8, 16)
    assert kernel.addressable_shards[0].data.shape == (2, 8 // 4, 16 // 2)
    # The optimiser's moments lie where their parameters lie.
    moments = [x for x in jax.tree.leaves(initial_state().opt_state) if x.shape == kernel.shape]
    assert moments
    assert all(x.sharding.is_equivalent_to(kernel.sharding, 3) for x in moments)


def test_frozen_layers_of_a_sharded_stack_keep_their_bits():
    optimizer = FrozenLayers(PalmAdafactor(schedules.Constant(0.01)), trained=[1])
    runtime = dataclasses.replace(PROGRAM, optimizer=optimizer).make()
    state = runtime.init_state()
    before = jax.device_get(state.params["decoder"]["layers"])
    batch = {name: np.ones((16, 4), fields.DTYPES[name]) for name in fields.REQUIRED}
    after, record = runtime.train_step(state, jax.device_put(batch, runtime.batch_sharding), runtime.make_record(1))
    for path, old in flatten(before).items():
        new = np.asarray(flatten(after.params)[f"decoder/layers/{path}"])
        assert new[0].tobytes() == old[0].tobytes()
        assert np.any(new[1] != old[1])
    moment = flatten(after.opt_state[0].v)["decoder/layers/mlp/wi_0/kernel"]
    assert moment.shape == (1, 8, 16)
    assert moment.addressable_shards[0].data.shape == (1, 2, 8)
    assert float(record[0, METRICS.index("optim/skipped_updates")]) == 0.0


def test_a_step_keeps_places_and_gives_up_the_old_state():
    state = runtime().state_from(initial_state().params)
    batch = {name: np.ones((16, 4), fields.DTYPES[name]) for name in fields.REQUIRED}
    batch = jax.device_put(batch, runtime().batch_sharding)
    abstract = runtime().abstract_batch(16, 4)
    assert {name: (x.shape, x.dtype, x.sharding) for name, x in batch.items()} == {
        name: (x.shape, x.dtype, x.sharding) for name, x in abstract.items()
    }
    after, record = runtime().train_step(state, batch, runtime().make_record(2))
    assert int(after.step) == 1
    assert record.shape == (2, len(METRICS))
    assert float(record[0, METRICS.index("train/weight")]) == 64
    for wanted, leaf in zip(jax.tree.leaves(runtime().abstract_state), jax.tree.leaves(after), strict=True):
        assert wanted.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
    assert flatten(state.params)["decoder/layers/mlp/wo/kernel"].is_deleted()
    losses = runtime().eval_step(after.params, batch)
    assert float(losses.weight) == 64
    # The same tokens again, after a step on them.
    assert float(losses.cross_entropy / losses.weight) < float(record[0, METRICS.index("train/loss")])


def test_state_from_parameters_begins_a_run():
    params = jax.tree.map(lambda x: x + 1, initial_state().params)
    state = runtime().state_from(params)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert int(state.step) == 0
    assert all(not np.asarray(x).any() for x in jax.tree.leaves(state.opt_state))


def test_the_table_of_a_model_that_fits_nowhere_here():
    """PaLM's 540 billion parameters on 6144 chips: shapes and places, nothing allocated, in seconds."""
    config = ModelConfig(118, 18432, 73728, 48, 1, 256, 256000)
    table = {**rules.fsdp_model(), "vocab": ()}
    program = Program(DecoderModel(config), PROGRAM.optimizer, MeshConfig(fsdp=256, model=12, dcn_data=2), table)
    started = time.perf_counter()
    rows = list(Runtime(program, program.mesh.make_abstract_mesh()).parameter_rows())
    assert time.perf_counter() - started < 30
    assert sum(row.count for row in rows) == 540_356_474_880
    row = next(row for row in rows if row.path == "decoder/layers/mlp/wi_0/kernel")
    assert row.shape == (118, 18432, 73728)
    assert row.axes == ("layers", "embed", "mlp")
    assert tuple(row.spec) == (None, "fsdp", "model")
    assert row.dtype == "float32"


def test_a_dimension_that_does_not_divide_is_named():
    config = dataclasses.replace(CONFIG, mlp_dim=15)
    program = dataclasses.replace(PROGRAM, model=DecoderModel(config, Decoder))
    message = r"decoder/layers/mlp/wi_0/kernel: dimension 2 \('mlp', size 15\) does not divide over model=2 = 2 devices"
    with pytest.raises(UserError, match=message):
        _ = program.make().abstract_params


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (9, "BATCH_SIZE = 9 does not divide into micro_batches = 2"),
        (12, r"a \(micro-\)batch: dimension 0 \('batch', size 6\) does not divide over fsdp=4 = 4 devices"),
    ],
)
def test_batch_sizes_that_do_not_divide(rows, message):
    with pytest.raises(UserError, match=message):
        runtime().check_batch_size(rows, 4)
    runtime().check_batch_size(16, 4)


def test_training_needs_an_optimizer():
    runtime = dataclasses.replace(PROGRAM, optimizer=None).make()
    assert runtime.abstract_params
    with pytest.raises(UserError, match="no optimiser is configured: bind OPTIMIZER"):
        _ = runtime.train_step


def test_the_seed_decides():
    other = dataclasses.replace(PROGRAM, seed=1).make()
    path = "token_embedder/embedding"
    first, second = flatten(initial_state().params)[path], flatten(other.init_state().params)[path]
    assert (np.asarray(first) != np.asarray(second)).mean() > 0.99
