"""Layered gradient accumulation: the gradients of plain accumulation, and each layer's weights gathered once a pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten
from t5x_scale.layers.moe import MoeMlp
from t5x_scale.models.blocks import ParallelBlock, SerialBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder, Head
from t5x_scale.models.interface import DecoderModel
from t5x_scale.models.remat import Remat
from t5x_scale.optim import schedules
from t5x_scale.optim.adamw import AdamW
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program
from t5x_scale.step import StepConfig, make_record, make_train_step, metric_names
from t5x_scale.train_state import TrainState
from tests.fakes.collectives import count_collectives

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
LAYERS, EMBED, MLP = 3, 24, 40
ROWS, LENGTH = 16, 5


def make_model(kind, dtype="float32", **options):
    config = ModelConfig(
        num_layers=LAYERS, embed_dim=EMBED, mlp_dim=MLP, num_heads=2, num_kv_heads=1, head_dim=10, vocab_size=32,
        dtype=dtype, **({"num_experts": 4, "num_experts_per_token": 2} if kind == "experts" else {}),
    )  # fmt: skip
    if kind == "parallel":
        return DecoderModel(config, functools.partial(Decoder, block=ParallelBlock, **options))
    block = functools.partial(SerialBlock, mlp=MoeMlp) if kind == "experts" else SerialBlock
    return DecoderModel(config, functools.partial(Decoder, block=block, head=Head, **options))


def make_batch():
    """Packed rows of very different weight, some positions in prefixes that look both ways."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (ROWS, LENGTH + 1)).astype(np.int32)
    second = np.arange(LENGTH) >= rng.integers(2, 4, (ROWS, 1))
    return {
        fields.INPUT_TOKENS: tokens[:, :-1],
        fields.TARGET_TOKENS: tokens[:, 1:],
        fields.LOSS_WEIGHTS: (rng.random((ROWS, LENGTH)) < np.linspace(0.1, 1, ROWS)[:, None]).astype(np.float32),
        fields.SEGMENT_IDS: (1 + second).astype(np.int32),
        fields.PREFIX: rng.integers(0, 2, (ROWS, LENGTH)).astype(np.int32),
    }


@functools.cache
def initial_params(kind, dtype):
    return jax.device_get(jax.jit(make_model(kind, dtype).init, compiler_options=FAST)(jax.random.key(0)))


@functools.cache
def gradients(kind, accumulation, micro_batches=4, packed=True, dtype="float32", **options):
    """`(the record's row, gradients by path)` of one step on one device."""
    model, transformation = make_model(kind, dtype, **options), optax.sgd(1.0)
    config = StepConfig(micro_batches, accumulation, max_grad_norm=None, loss_chunk_length=4)
    step = make_train_step(model, transformation, lambda step: 0.1 * step, config)
    params = initial_params(kind, dtype)
    state = TrainState(jnp.zeros((), jnp.int32), params, transformation.init(params))
    batch = (
        make_batch()
        if packed
        else {name: x for name, x in make_batch().items() if "tokens" in name or "weights" in name}
    )
    after, record = jax.jit(step, compiler_options=FAST)(state, batch, make_record(1, metric_names(model)))
    before, after = flatten(params), flatten(jax.device_get(after.params))
    return np.asarray(record[0]), {path: before[path] - after[path] for path in before}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("parallel", {}),
        ("parallel", {"remat": "full"}),
        ("parallel", {"packed": False}),
        ("serial", {"windows": (2, None, 3)}),
        ("serial", {"remat": "minimal", "windows": (2, None, 3)}),
        ("serial", {"remat": Remat(save=("query", "mlp_hidden"))}),
        ("experts", {}),
        ("experts", {"remat": "dots"}),
    ],
)
def test_gradients_equal_those_of_plain_accumulation(kind, options):
    expected, plain = gradients(kind, "plain", **options)
    record, layered = gradients(kind, "layered", **options)
    np.testing.assert_allclose(record, expected, rtol=2e-6, atol=1e-7)
    assert layered.keys() == plain.keys()
    for path, gradient in plain.items():
        assert np.abs(gradient).max() > 1e-4, path
        np.testing.assert_allclose(layered[path], gradient, rtol=0, atol=1e-6, err_msg=path)


def test_gradients_are_summed_in_float32():
    """In bfloat16 sums of eight would be off by a part in 256; the sums themselves are of the same products."""
    _, plain = gradients("parallel", "plain", micro_batches=8, dtype="bfloat16")
    _, layered = gradients("parallel", "layered", micro_batches=8, dtype="bfloat16")
    for path in ("mlp/wi_0/kernel", "mlp/wo/kernel", "self_attention/query/kernel", "self_attention/out/kernel"):
        expected = plain[f"decoder/layers/{path}"]
        error = np.abs(layered[f"decoder/layers/{path}"] - expected)
        assert error.max() < 2e-4 * np.abs(expected).max(), path


@functools.cache
def compiled_text(kind, accumulation, micro_batches, remat="none"):
    """The optimised program of a step on data=2 x fsdp=4, experts split over two of them."""
    sizes = {"data": 2, "fsdp": 2, "expert": 2} if kind == "experts" else {"data": 2, "fsdp": 4}
    step = StepConfig(micro_batches, accumulation, loss_chunk_length=4)
    model = make_model(kind, remat=remat)
    runtime = Program(model, AdamW(schedules.Constant(1e-3)), MeshConfig(**sizes), rules.fsdp(), step).make()
    record = jax.ShapeDtypeStruct((1, len(runtime.metric_names)), jnp.float32)
    arguments = runtime.abstract_state, runtime.abstract_batch(ROWS, LENGTH), record
    return runtime.train_step.lower(*arguments).compile(FAST).as_text()


def layer_gathers(text):
    """How often something of the size of a layer's kernel is gathered."""
    kernels = {"24,40", "40,24", "24,2,10", "2,10,24", "24,1,10", "2,24,40", "2,40,24"}
    found = {}
    for (kind, shape), times in count_collectives(text).items():
        sizes = shape.split("[")[-1].rstrip("]").removeprefix("1,")
        if kind == "all-gather" and (sizes in kernels or sizes.removeprefix("1,") in kernels):
            found[shape] = found.get(shape, 0) + times
    return found


@pytest.mark.parametrize(
    ("kind", "remat"), [("parallel", "none"), ("parallel", "full"), ("serial", "minimal"), ("experts", "none")]
)
def test_weights_of_a_layer_are_gathered_once_a_pass(kind, remat):
    counts = {
        (accumulation, parts): layer_gathers(compiled_text(kind, accumulation, parts, remat))
        for accumulation, parts in (("plain", 1), ("plain", 2), ("layered", 2))
    }
    once, plain, layered = counts.values()
    assert sum(once.values()) >= 2 * LAYERS * 5
    assert plain == {shape: 2 * times for shape, times in once.items()}
    assert sum(layered.values()) == sum(once.values())


@pytest.mark.parametrize(
    ("kind", "remat"),
    [("parallel", "none"), ("parallel", "full"), ("serial", "minimal"), ("serial", "dots"), ("experts", "none")],
)
def test_no_pass_keeps_the_gathered_weights_of_all_layers(kind, remat):
    text, experts = compiled_text(kind, "layered", 2, remat), "2," if kind == "experts" else ""
    stored = EMBED // (2 if kind == "experts" else 4)
    assert f"f32[{LAYERS},{experts}{stored},{MLP}]" in text
    assert f"f32[{LAYERS},{experts}{EMBED},{MLP}]" not in text


def test_what_cannot_be():
    with pytest.raises(UserError, match=r"StepConfig.accumulation is 'layerd' \(did you mean 'layered'"):
        StepConfig(accumulation="layerd")
    model = make_model("parallel", scan_layers=False)
    step = make_train_step(model, optax.sgd(1.0), lambda _: 0.1, StepConfig(2, "layered"))
    params = model.abstract_params()
    state = TrainState(jnp.zeros((), jnp.int32), params, ())
    with pytest.raises(UserError, match="scan_layers = False: layered accumulation and pipelines need stacked layers"):
        jax.eval_shape(step, state, make_batch(), make_record(1))
    step = make_train_step(make_model("parallel"), optax.sgd(1.0), lambda _: 0.1, StepConfig(3, "layered"))
    state = TrainState(jnp.zeros((), jnp.int32), make_model("parallel").abstract_params(), ())
    with pytest.raises(UserError, match="a batch of 16 rows does not divide into 3 micro-batches"):
        jax.eval_shape(step, state, make_batch(), make_record(1))
