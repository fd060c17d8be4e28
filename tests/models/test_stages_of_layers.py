"""Schedules of a pipeline, and all that is refused in a line. What it computes: tests/numerics/test_pipelines.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten
from t5x_scale.layers.moe import MoeMlp
from t5x_scale.models.blocks import ParallelBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder
from t5x_scale.models.interface import DecoderModel
from t5x_scale.models.pipeline import PipelineConfig, make_schedule
from t5x_scale.optim import schedules
from t5x_scale.optim.adamw import AdamW
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program, Runtime
from t5x_scale.step import StepConfig, make_record, make_train_step, metric_names
from t5x_scale.train_state import TrainState
from tests.fakes.collectives import count_collectives
from tests.fakes.gin_files import load_program

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
CONFIG = ModelConfig(
    num_layers=4, embed_dim=24, mlp_dim=40, num_heads=2, num_kv_heads=1, head_dim=10, vocab_size=32, dtype="float32"
)
EXPERTS = functools.partial(ParallelBlock, mlp=functools.partial(MoeMlp, balance_loss=0.5))
ROWS, LENGTH = 8, 6


@functools.cache
def initial_params(shapes, block):
    model = DecoderModel(shapes, functools.partial(Decoder, block=block))
    return jax.device_get(jax.jit(model.init, compiler_options=FAST)(jax.random.key(0)))


def gradients(dtype="float32", experts=0, **config):
    """By path, of one step on one device."""
    shapes, block = dataclasses.replace(CONFIG, dtype=dtype), ParallelBlock
    if experts:
        shapes = dataclasses.replace(shapes, num_experts=experts, num_experts_per_token=2)
        block = EXPERTS
    model = DecoderModel(shapes, functools.partial(Decoder, block=block))
    step = make_train_step(model, optax.sgd(1.0), lambda _: 0.1, StepConfig(max_grad_norm=None, **config))
    params = initial_params(shapes, block)
    tokens = np.random.default_rng(0).integers(0, 32, (ROWS, LENGTH + 1)).astype(np.int32)
    weights = np.linspace(0.1, 1, ROWS, dtype=np.float32)[:, None].repeat(LENGTH, axis=1)
    batch = {fields.INPUT_TOKENS: tokens[:, :-1], fields.TARGET_TOKENS: tokens[:, 1:], fields.LOSS_WEIGHTS: weights}
    state = TrainState(jnp.zeros((), jnp.int32), params, optax.sgd(1.0).init(params))
    after, _ = jax.jit(step, compiler_options=FAST)(state, batch, make_record(1, metric_names(model)))
    after = flatten(jax.device_get(after.params))
    return {path: x - after[path] for path, x in flatten(params).items()}


def test_one_stage_alone_has_the_gradients_of_plain_accumulation():
    """Also where the batch is cut twice, and the layers are gone through in rounds."""
    plain = gradients()
    for config in (
        {"pipeline": PipelineConfig(2, "modular"), "micro_batches": 2},
        {"pipeline": PipelineConfig(8, 2), "accumulation": "layered"},
    ):
        got = gradients(**config)
        for path, expected in plain.items():
            np.testing.assert_allclose(got[path], expected, rtol=0, atol=1e-6, err_msg=path)


def test_losses_of_experts_are_those_of_their_layers_and_rows():
    plain, piped = gradients(experts=4), gradients(experts=4, pipeline=PipelineConfig(2, 2))
    for path, expected in plain.items():
        np.testing.assert_allclose(piped[path], expected, rtol=0, atol=1e-6, err_msg=path)


def test_a_pipeline_computes_no_more_again_than_a_loop_over_layers():
    def products(remat, **config):
        model = DecoderModel(CONFIG, functools.partial(Decoder, remat=remat))
        program = Program(model, AdamW(schedules.Constant(1e-3)), MeshConfig(), step=StepConfig(**config))
        text = program.make(jax.devices()[:1]).compile_step(ROWS, LENGTH, 1).as_text()
        return count_collectives(text, ("dot",)).total()

    assert products("minimal", micro_batches=2) < products("full", micro_batches=2)
    for remat in ("minimal", "full"):
        assert products(remat, pipeline=PipelineConfig(2, 2)) <= products(remat, micro_batches=2)


def test_gradients_are_summed_in_float32():
    plain = gradients("bfloat16", micro_batches=4, loss_chunk_length=4)
    piped = gradients("bfloat16", pipeline=PipelineConfig(4, 2), loss_chunk_length=4)
    for path in ("mlp/wi_0/kernel", "mlp/wo/kernel", "self_attention/query/kernel"):
        expected = plain[f"decoder/layers/{path}"]
        assert np.abs(piped[f"decoder/layers/{path}"] - expected).max() < 2e-4 * np.abs(expected).max(), path


@pytest.mark.parametrize(
    ("repeats", "groups", "turns", "share"),
    [(1, (1, 8), 19, 3 / 19), (2, (2, 4), 35, 3 / 35), ("modular", (8, 1), 131, 3 / 131)],
)
def test_schedule(repeats, groups, turns, share):
    schedule = make_schedule(PipelineConfig(16, repeats), stages=4, num_layers=32)
    assert (schedule.repeats, schedule.layers) == groups
    assert schedule.turns == turns
    assert schedule.bubble_share == pytest.approx(share)


@pytest.mark.parametrize(
    ("config", "stages", "message"),
    [
        (PipelineConfig(8), 3, r"4 layers do not divide over stage=3 x repeats=1 = 3 groups$"),
        (PipelineConfig(8, 4), 2, r"stage=2 x repeats=4 = 8 groups; repeats=2 would do$"),
        (PipelineConfig(8, "modular"), 8, r"4 layers do not divide over stage=8 x repeats=1 = 8 groups"),
        (PipelineConfig(1, 2), 2, r"1 micro-batches are fewer than stage=2; with repeats=2 the first must not come"),
    ],
)
def test_what_does_not_divide(config, stages, message):
    with pytest.raises(UserError, match=message):
        make_schedule(config, stages, CONFIG.num_layers)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PipelineConfig(0), "PipelineConfig.micro_batches is 0; expected a positive number"),
        (lambda: PipelineConfig(4, "modula"), "PipelineConfig.repeats is 'modula'; expected a positive number or 'mod"),
        (lambda: StepConfig(2, "layered", PipelineConfig(4)), "StepConfig.micro_batches = 2: in a layered pipeline"),
    ],
)
def test_config_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("sizes", "table", "pipeline", "rows", "message"),
    [
        (
            {"stage": 2},
            rules.pipeline(),
            PipelineConfig(3),
            8,
            "a batch of 8 rows does not divide into 3 micro",
        ),
        (
            {"stage": 2, "fsdp": 4},
            rules.pipeline(),
            PipelineConfig(4),
            8,
            "micro-batches of 2 rows do not divide over",
        ),
        ({"stage": 2}, rules.pipeline(), None, 8, "the mesh has stage=2 and StepConfig.pipeline is None"),
        ({"stage": 8}, rules.pipeline(), PipelineConfig(8), 8, "'layers', size 4. does not divide over stage=8"),
        ({"stage": 2, "fsdp": 2}, rules.fsdp(), PipelineConfig(2), 8, "the mesh has stage=2, but the rules split noth"),
    ],
)
def test_a_step_that_cannot_be(sizes, table, pipeline, rows, message):
    mesh, step = MeshConfig(**{"fsdp": 1, **sizes}), StepConfig(pipeline=pipeline)
    program = Program(DecoderModel(CONFIG, Decoder), AdamW(schedules.Constant(1e-3)), mesh, table, step)
    number = int(np.prod([*sizes.values()]))
    with pytest.raises(UserError, match=message):
        program.make(jax.devices()[:number]).compile_step(rows, LENGTH, 1)


def test_a_run_may_go_on_in_a_pipeline():
    """Nothing of it is in the record of what the parameters mean, and no parameter changes its shape or place."""
    model = DecoderModel(CONFIG, Decoder)
    assert not [name for module in model.architecture().values() for name in module if "pipeline" in name]
    mesh, step = MeshConfig(fsdp=1, stage=2), StepConfig(pipeline=PipelineConfig(4, 2))
    runtime = Program(model, AdamW(schedules.Constant(1e-3)), mesh, rules.pipeline(), step).make(jax.devices()[:2])
    for path, leaf in flatten(runtime.abstract_params).items():
        assert leaf.shape == flatten(model.abstract_params())[path].shape
        if "/layers/" in path:
            assert leaf.sharding.shard_shape(leaf.shape)[0] == 2


def test_reachable_from_gin():
    """The sharding file after the machine, the number of stages, and the knobs beside it."""
    program = load_program(
        "gin/models/palm/tiny.gin",
        hardware="gin/hardware/cpu_8.gin",
        more=("gin/sharding/pipeline.gin",),
        MeshConfig__data=1,
        MeshConfig__stage=2,
        PipelineConfig__repeats="modular",
        StepConfig__accumulation="layered",
    )
    assert program.step.pipeline == PipelineConfig(16, "modular")
    runtime = Runtime(program, program.mesh.make_abstract_mesh())
    kernel = flatten(runtime.abstract_params)["decoder/layers/mlp/wi_0/kernel"]
    assert kernel.sharding.spec == PartitionSpec("stage", "fsdp", "model")
