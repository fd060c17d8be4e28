"""A pipeline trains as one device does, whatever its schedule and the mesh within its stages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core import batch as fields
from t5x_scale.models.interface import DecoderModel
from t5x_scale.models.pipeline import PipelineConfig
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program
from t5x_scale.step import StepConfig
from tests.fakes.collectives import count_collectives

TOLERANCE = 5e-5
LAYERS = 4
LOSS, Z_LOSS, WEIGHT, NORM, AUXILIARY = 0, 1, 3, 5, slice(7, None)


def make_runtime(numerics, block, sizes, pipeline=None, accumulation="plain", remat="none", windows=()):
    """Packed rows: `parallel` is causal, the others have prefixes that look both ways."""
    model = numerics.make_model(block, remat)
    decoder = functools.partial(model.decoder, windows=windows)
    model = DecoderModel(dataclasses.replace(model.config, num_layers=LAYERS), decoder)
    step = StepConfig(accumulation=accumulation, pipeline=pipeline, loss_chunk_length=5)
    table = rules.pipeline() if pipeline else rules.fsdp_model()
    mesh = MeshConfig(**{"fsdp": 1, **sizes})
    number = int(np.prod([*sizes.values()]))
    return Program(model, numerics.OPTIMIZERS["adamw"], mesh, table, step).make(jax.devices()[:number])


def make_batches(numerics, block):
    if block == "parallel":
        return numerics.BATCHES
    prefix = (np.arange(numerics.LENGTH) % 6 < 2).astype(np.int32)[None].repeat(numerics.ROWS, axis=0)
    return [batch | {fields.PREFIX: prefix} for batch in numerics.BATCHES]


_initial, _trained = {}, {}


def initial_state(numerics, block):
    """As numpy: the same on every mesh, and for all windows."""
    if block not in _initial:
        runtime = make_runtime(numerics, block, {})
        key, fast = jax.random.key(0, impl="threefry2x32"), numerics.FAST
        params = jax.device_get(jax.jit(runtime.program.model.init, compiler_options=fast)(key))
        _initial[block] = jax.device_get(jax.jit(runtime._state_of, compiler_options=fast)(params))
    return _initial[block]


def train(numerics, block, sizes=None, **options):
    """`(metrics [STEPS, M], the compiled step)`."""
    key = repr((block, sizes, options))
    if key in _trained:
        return _trained[key]
    runtime = make_runtime(numerics, block, sizes or {}, **options)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, runtime.abstract_state)
    state = jax.device_put(initial_state(numerics, block), shardings)
    record, step = runtime.make_record(numerics.STEPS), None
    for batch in make_batches(numerics, block):
        batch = jax.device_put(batch, runtime.batch_sharding)
        step = step or runtime.train_step.lower(state, batch, record).compile(numerics.FAST)
        state, record = step(state, batch, record)
    _trained[key] = np.asarray(record), step
    return _trained[key]


@pytest.mark.parametrize(
    ("block", "sizes", "pipeline", "options"),
    [
        ("parallel", {"stage": 4}, PipelineConfig(8), {}),
        ("parallel", {"stage": 2, "model": 2}, PipelineConfig(4, 2), {"remat": "minimal"}),
        ("parallel", {"stage": 2, "fsdp": 4}, PipelineConfig(2, "modular"), {"accumulation": "layered"}),
        ("serial", {"stage": 2}, PipelineConfig(2, 2), {"remat": "full", "windows": (3, None)}),
        ("serial", {"stage": 4, "fsdp": 2}, PipelineConfig(4), {"remat": "full"}),
        ("serial", {"stage": 2, "model": 4}, PipelineConfig(4), {"accumulation": "layered"}),
        ("serial", {"dcn_stage": 2, "stage": 2}, PipelineConfig(4), {}),
        ("serial", {"stage": 2, "context": 2}, PipelineConfig(4), {}),
        ("parallel", {"stage": 2, "context": 2, "model": 2}, PipelineConfig(4), {"remat": "full"}),
        ("experts", {"stage": 2, "fsdp": 2, "expert": 2}, PipelineConfig(2), {}),
        ("experts", {"stage": 2, "expert": 2, "context": 2}, PipelineConfig(2), {"accumulation": "layered"}),
    ],
)
def test_losses_are_those_of_one_device(numerics, block, sizes, pipeline, options):
    same = {name: value for name, value in options.items() if name == "windows"}
    expected, _ = train(numerics, block, **same)
    got, _ = train(numerics, block, sizes, pipeline=pipeline, **options)
    assert expected[:3, LOSS].mean() - expected[-3:, LOSS].mean() > 0.2
    for columns in (LOSS, Z_LOSS, AUXILIARY):
        np.testing.assert_allclose(got[:, columns], expected[:, columns], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(got[:, WEIGHT], expected[:, WEIGHT])
    np.testing.assert_allclose(got[:, NORM], expected[:, NORM], rtol=1e-3)


def moves(step):
    """Times that something of a layer's shapes moves over stages: permutations, exchanges; and all else."""
    counts = count_collectives(step.as_text())
    return {kind: sum(n for (k, _), n in counts.items() if k == kind) for kind in ("collective-permute", "all-to-all")}


def test_what_moves_between_stages(numerics):
    _, step = train(numerics, "parallel", {"stage": 4}, pipeline=PipelineConfig(8))
    # A turn forward is a turn back; the blocks in which layers are stored are the groups.
    assert moves(step) == {"collective-permute": 2 * (8 + 3), "all-to-all": 0}
    # Nothing of a layer is gathered: the head and the result only.
    assert not [shape for kind, shape in count_collectives(step.as_text()) if kind == "all-gather" and "16,32" in shape]
    _, step = train(numerics, "serial", {"stage": 2}, pipeline=PipelineConfig(2, 2), remat="full", windows=(3, None))
    kernels_and_scales = 9
    assert moves(step) == {"collective-permute": 2 * (2 * 2 + 1), "all-to-all": 2 * kernels_and_scales}


def test_layered_gathers_a_group_once_a_round(numerics):
    def gathers(accumulation):
        runtime = make_runtime(
            numerics, "parallel", {"stage": 2, "fsdp": 2}, PipelineConfig(4), accumulation, remat="full"
        )
        record = jax.ShapeDtypeStruct((1, len(runtime.metric_names)), jnp.float32)
        arguments = runtime.abstract_state, runtime.abstract_batch(numerics.ROWS, numerics.LENGTH), record
        counts = count_collectives(runtime.train_step.lower(*arguments).compile(numerics.FAST).as_text())
        # wi_0 and wi_1, of one layer or of the two of a group.
        return sum(
            n * (2 if shape.endswith("2,16,32]") else 1)
            for (kind, shape), n in counts.items()
            if kind == "all-gather" and shape.endswith("16,32]")
        )

    turns, layers_of_a_stage, kernels, passes = 5, 2, 2, 2
    assert gathers("plain") == turns * layers_of_a_stage * kernels * passes
    # The backward pass of the only round stands behind its forward pass, and the CPU compiler keeps what it gathered.
    assert gathers("layered") <= layers_of_a_stage * kernels * passes


def test_evaluation_and_decoding(numerics):
    one = make_runtime(numerics, "serial", {})
    staged = make_runtime(numerics, "serial", {"stage": 2, "fsdp": 2}, PipelineConfig(4))
    params = jax.device_get(jax.jit(one.program.model.init, compiler_options=numerics.FAST)(jax.random.key(1)))
    placed = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, staged.abstract_params))
    batch = numerics.BATCHES[0]
    for name in ("eval_step", "row_eval_step"):
        expected = getattr(one, name)(params, batch)
        got = getattr(staged, name)(placed, jax.device_put(batch, staged.batch_sharding))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)

    def extend(runtime, params):
        model, tokens = runtime.program.model, batch[fields.INPUT_TOKENS][:2]
        positions = jnp.broadcast_to(jnp.arange(numerics.LENGTH), tokens.shape)
        run = lambda p: model.extend(p, tokens, positions, model.make_cache(2, numerics.LENGTH))[0]  # noqa: E731
        return jax.jit(runtime._constrained(run), compiler_options=numerics.FAST)(params)

    np.testing.assert_allclose(extend(staged, placed), extend(one, params), rtol=0, atol=2e-5)
