"""Twenty steps of a tiny decoder, trained in every way that must not change the losses."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from t5x_scale.core import batch as fields
from t5x_scale.layers.moe import MoeMlp
from t5x_scale.layers.norm import LayerNorm
from t5x_scale.models.blocks import ParallelBlock, SerialBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder, Head
from t5x_scale.models.interface import DecoderModel, unstack_layers
from t5x_scale.optim import schedules
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.palm_adafactor import PalmAdafactor
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program
from t5x_scale.step import StepConfig

STEPS, ROWS, LENGTH = 20, 8, 12
CONFIG = ModelConfig(
    num_layers=2, embed_dim=16, mlp_dim=32, num_heads=4, num_kv_heads=1, head_dim=8, vocab_size=48, dtype="float32"
)
OPTIMIZERS = {
    "palm_adafactor": PalmAdafactor(schedules.Constant(1e-2)),
    "adamw": AdamW(schedules.Constant(3e-3)),
}
MESHES = {
    "one": (1, MeshConfig(), rules.fsdp()),
    "data=8": (8, MeshConfig(data=8, fsdp=1), rules.data_parallel()),
    "fsdp=8": (8, MeshConfig(fsdp=8), rules.fsdp()),
    "fsdp=2 model=4": (8, MeshConfig(fsdp=2, model=4), rules.fsdp_model()),
    # Where a partitioner left to itself returns rows in the wrong order: see shardings.gather.
    "data=2 fsdp=2 model=2": (8, MeshConfig(data=2, fsdp=2, model=2), rules.fsdp_model()),
    "fsdp=2 expert=2 model=2": (8, MeshConfig(fsdp=2, expert=2, model=2), rules.fsdp_model()),
    "data=2 expert=2 context=2": (8, MeshConfig(data=2, fsdp=1, expert=2, context=2), rules.fsdp_model()),
    "fsdp=4 expert=2": (8, MeshConfig(fsdp=4, expert=2), rules.fsdp()),
    "model=4": (4, MeshConfig(fsdp=1, model=4), rules.fsdp_model()),
    "expert=4": (4, MeshConfig(fsdp=1, expert=4), rules.fsdp()),
    "fsdp=2 expert=4": (8, MeshConfig(fsdp=2, expert=4), rules.fsdp()),
    "vocabulary over fsdp=2, model=4": (8, MeshConfig(fsdp=2, model=4), rules.fsdp_model_vocab_fsdp()),
    "length over model=4, fsdp=2": (8, MeshConfig(fsdp=2, model=4), rules.sequence()),
    "experts over expert=2 model=2, fsdp=2": (8, MeshConfig(fsdp=2, expert=2, model=2), rules.expert()),
}
# The same program after the same passes on the same partitions, with less work by LLVM: a fifth of the time.
FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def make_model(block: str, remat: str = "none", scan_layers: bool = True) -> DecoderModel:
    """PaLM's parallel block with shared embeddings, or a serial one like Llama (`serial`) or Mixtral (`experts`)."""
    options = {"remat": remat, "scan_layers": scan_layers}
    if block == "parallel":
        norm = functools.partial(LayerNorm, use_bias=False)
        layer = functools.partial(ParallelBlock, norm=norm)
        return DecoderModel(CONFIG, functools.partial(Decoder, block=layer, final_norm=norm, **options))
    config, layer = dataclasses.replace(CONFIG, num_kv_heads=2), SerialBlock
    if block == "experts":
        config = dataclasses.replace(config, mlp_dim=16, num_experts=4, num_experts_per_token=2)
        # Coefficients at which a wrong gradient would show in the losses, and a buffer that some batches overflow.
        mlp = functools.partial(MoeMlp, balance_loss=0.1, router_z_loss=0.01, exchange_buffer=1.5)
        layer = functools.partial(SerialBlock, mlp=mlp)
    return DecoderModel(config, functools.partial(Decoder, block=layer, head=Head, **options))


def make_batches() -> list[dict[str, np.ndarray]]:
    """Packed documents with something to learn: a token is a function of the one before, with noise."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(STEPS):
        tokens = rng.integers(1, CONFIG.vocab_size, (ROWS, LENGTH + 1))
        for i in range(LENGTH):
            follows = rng.random(ROWS) < 0.8
            tokens[:, i + 1] = np.where(follows, (tokens[:, i] * 5 + 1) % 12, tokens[:, i + 1])
        cuts = rng.integers(3, LENGTH - 2, (ROWS, 1))
        second = np.arange(LENGTH) >= cuts
        batches.append(
            {
                fields.INPUT_TOKENS: tokens[:, :-1].astype(np.int32),
                fields.TARGET_TOKENS: tokens[:, 1:].astype(np.int32),
                # Rows of very different weight: a mean of means over micro-batches would show.
                fields.LOSS_WEIGHTS: (rng.random((ROWS, LENGTH)) < np.linspace(0.2, 1, ROWS)[:, None]).astype(
                    np.float32
                ),
                fields.SEGMENT_IDS: (1 + second).astype(np.int32),
                fields.POSITIONS: (np.arange(LENGTH) - np.where(second, cuts, 0)).astype(np.int32),
            }
        )
    return batches


def with_prefixes(batches: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The same with a prefix in each packed document, from none of it to all."""
    rng = np.random.default_rng(1)
    result = []
    for batch in batches:
        second, position = batch[fields.SEGMENT_IDS] == 2, batch[fields.POSITIONS]
        lengths = np.stack([(~second).sum(axis=1), second.sum(axis=1)], axis=1)
        reach = rng.integers(0, lengths + 1)
        result.append(
            {**batch, fields.PREFIX: (position < np.where(second, reach[:, 1:], reach[:, :1])).astype(np.int32)}
        )
    return result


BATCHES = make_batches()
PREFIXED = with_prefixes(BATCHES)


@functools.cache
def initial_params(block: str, seed: int = 0):
    """The parameters of a seed, as numpy."""
    init = jax.jit(make_model(block).init, compiler_options=FAST)
    return jax.device_get(init(jax.random.key(seed, impl="threefry2x32")))


@functools.cache
def initial_state(block: str, optimizer: str, seed: int = 0, stacked: bool = True):
    """The state that `initial_params` begin with, as numpy: the same on every mesh."""
    params = initial_params(block, seed)
    params = params if stacked else unstack_layers(params, CONFIG.num_layers)
    state_of = make_runtime(block, optimizer, scan_layers=stacked)._state_of
    return jax.device_get(jax.jit(state_of, compiler_options=FAST)(params))


def make_runtime(block, optimizer, mesh="one", micro_batches=1, **model):
    """A `Runtime` for one way of training."""
    number, config, table = MESHES[mesh]
    step = StepConfig(micro_batches=micro_batches, loss_chunk_length=5)
    program = Program(make_model(block, **model), OPTIMIZERS[optimizer], config, table, step)
    return program.make(jax.devices()[:number])


@functools.cache
def train(block, optimizer, mesh="one", micro_batches=1, seed=0, repeat=0, prefixed=False, **model):
    """Trains `STEPS` steps; returns (metrics [STEPS, M], parameters) as numpy. `repeat` is a cache-breaker."""
    runtime = make_runtime(block, optimizer, mesh, micro_batches, **model)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, runtime.abstract_state)
    state = jax.device_put(initial_state(block, optimizer, seed, model.get("scan_layers", True)), shardings)
    record = runtime.make_record(STEPS)
    step = None
    for batch in PREFIXED if prefixed else BATCHES:
        batch = jax.device_put(batch, runtime.batch_sharding)
        step = step or runtime.train_step.lower(state, batch, record).compile(FAST)
        state, record = step(state, batch, record)
    return np.asarray(record), jax.device_get(state.params)


@pytest.fixture(scope="session")
def numerics():
    """`train`, `make_runtime`, `make_model`, `initial_params` and the constants of this file."""
    return types.SimpleNamespace(**{name: value for name, value in globals().items() if not name.startswith("_")})
