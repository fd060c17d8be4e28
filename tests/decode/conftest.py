"""Tiny models of every kind that decodes differently."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.layers.attention import Attention
from t5x_scale.layers.moe import MoeMlp
from t5x_scale.layers.positions import LearnedPositions, NoPositions, RelativePositions, Rope
from t5x_scale.models.blocks import ParallelBlock, SerialBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder, Head
from t5x_scale.models.interface import DecoderModel

CONTEXT = 40
VOCABULARY_SIZE = 50


def _make_model(block=ParallelBlock, positions=Rope, num_kv_heads=1, learned=False, experts=0, **attention):
    config = ModelConfig(
        num_layers=2,
        embed_dim=16,
        mlp_dim=24,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=8,
        vocab_size=VOCABULARY_SIZE,
        dtype="float32",
        num_experts=experts,
        num_experts_per_token=min(experts, 2),
    )
    block = functools.partial(block, mlp=MoeMlp) if experts else block
    block = functools.partial(block, attention=functools.partial(Attention, positions=positions, **attention))
    table = functools.partial(LearnedPositions, max_length=CONTEXT) if learned else None
    # A head of its own: one that shares the embeddings would mostly repeat the last token.
    return DecoderModel(config, functools.partial(Decoder, block=block, position_embedder=table, head=Head))


KINDS = {
    "parallel_rope_mqa": {},
    "serial_rope_gqa": {"block": SerialBlock, "num_kv_heads": 2},
    "parallel_relative_mha": {"positions": RelativePositions, "num_kv_heads": 4, "window": 7},
    "serial_experts": {"block": SerialBlock, "experts": 4},
    "serial_learned_mqa": {"block": SerialBlock, "positions": NoPositions, "learned": True},
}


@functools.cache
def _make(kind):
    """Parameters from numpy: nothing is compiled for them. Large enough that no two tokens are nearly as likely."""
    model = _make_model(**KINDS[kind])
    random = np.random.default_rng(1)
    return model, jax.tree.map(lambda leaf: _draw(random, leaf), model.abstract_params())


def _draw(random, leaf):
    return jnp.asarray(random.normal(size=leaf.shape) * (0.5 if len(leaf.shape) > 2 else 1.0), leaf.dtype)


@pytest.fixture(params=KINDS)
def any_model(request):
    return _make(request.param)


@pytest.fixture(scope="session")
def tiny_model():
    return _make("parallel_rope_mqa")


@pytest.fixture(scope="session")
def relative_model():
    return _make("parallel_relative_mha")


@pytest.fixture(scope="session")
def learned_model():
    return _make("serial_learned_mqa")


_FULL = {kind: jax.jit(_make_model(**options).logits) for kind, options in KINDS.items()}


@pytest.fixture(scope="session")
def full_logits():
    return _full_logits


def _full_logits(model, params, tokens, prefix=0):
    """float32 [L, V] of a whole sequence, without a cache; padded to one shape, so compiled once a model."""
    kind = next(kind for kind in KINDS if _make(kind)[0] is model)
    padded = jnp.array([list(tokens) + [0] * (CONTEXT - len(tokens))], jnp.int32)
    inside = (jnp.arange(CONTEXT)[None] < prefix).astype(jnp.int32)
    batch = {"decoder_input_tokens": padded, "decoder_causal_attention": inside}
    return np.asarray(_FULL[kind](params, batch)[0, : len(tokens)])
