"""Rows of an evaluation, kept apart, against the same pass summed."""

import jax
import numpy as np
import pytest

from t5x_scale.core import batch as fields
from t5x_scale.evaluation import evaluate, evaluate_rows
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder
from t5x_scale.models.interface import DecoderModel
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.rules import fsdp
from t5x_scale.program import Program

CONFIG = ModelConfig(
    num_layers=1, embed_dim=8, mlp_dim=12, num_heads=2, num_kv_heads=1, head_dim=4, vocab_size=11, dtype="float32"
)
LENGTH = 6


class Source:
    """Batches of random tokens; the last two rows only fill up."""

    num_batches, batch_size = 2, 8

    def __init__(self, seed=0, weight_seed=0):
        rng = np.random.default_rng(seed)
        self.tokens = rng.integers(0, CONFIG.vocab_size, (16, LENGTH + 1)).astype(np.int32)
        self.weights = np.random.default_rng(weight_seed).integers(0, 2, (16, LENGTH)).astype(np.float32)
        self.weights[:, 0] = 1.0
        self.weights[-2:] = 0.0

    def batch(self, index, rows=None):
        mine = slice(index * 8, index * 8 + 8)
        batch = {
            fields.INPUT_TOKENS: self.tokens[mine, :-1],
            fields.TARGET_TOKENS: self.tokens[mine, 1:],
            fields.LOSS_WEIGHTS: self.weights[mine],
        }
        return batch if rows is None else {name: x[rows] for name, x in batch.items()}


@pytest.fixture(scope="module")
def runtime():
    return Program(DecoderModel(CONFIG, Decoder), mesh=MeshConfig(fsdp=8), rules=fsdp()).make()


@pytest.fixture(scope="module")
def params(runtime):
    shardings = jax.tree.map(lambda leaf: leaf.sharding, runtime.abstract_params)
    return jax.jit(runtime.program.model.init, out_shardings=shardings)(jax.random.key(0))


def test_rows_add_up_to_the_whole(runtime, params):
    sources = {"a:b": Source(), "c": Source(1)}
    rows = evaluate_rows(runtime.row_eval_step, runtime.batch_sharding, params, sources)
    whole = evaluate(runtime.eval_step, runtime.batch_sharding, params, sources)
    assert list(rows) == ["a_b", "c"]
    for name, sums in rows.items():
        assert sums.correct.shape == (14,)
        assert sums.loss == pytest.approx(whole[f"eval/{name}/loss"], rel=1e-6)
        assert sums.accuracy == pytest.approx(whole[f"eval/{name}/accuracy"])
        assert sums.weight.sum() == whole[f"eval/{name}/tokens"]
    assert sums.weight.tolist() == Source(1).weights.sum(axis=1)[:14].tolist()


def test_the_digest_is_of_the_scored_tokens(runtime, params):
    sources = {"a": Source(), "same": Source(), "other tokens": Source(1), "other places": Source(weight_seed=1)}
    rows = evaluate_rows(runtime.row_eval_step, runtime.batch_sharding, params, sources)
    digests = [sums.tokens for sums in rows.values()]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
