"""What blocks hand to the parts that are injected into them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from t5x_scale.layers.attention import Attention
from t5x_scale.layers.masks import Mask
from t5x_scale.layers.norm import RMSNorm
from t5x_scale.models.blocks import ParallelBlock, SandwichBlock, SerialBlock, TwoNormParallelBlock
from t5x_scale.models.config import ModelConfig

CONFIG = ModelConfig(
    num_layers=1, embed_dim=4, mlp_dim=6, num_heads=2, num_kv_heads=1, head_dim=2, vocab_size=5, dtype="float32"
)


FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def draw_params(layer, x):
    """Random values of the right shapes, scales 1."""
    shapes = jax.eval_shape(lambda key: layer.init(key, x, Mask(), jnp.arange(x.shape[1])[None]), jax.random.key(0))
    rng = np.random.default_rng(1)

    def draw(leaf):
        values = np.ones(leaf.shape) if leaf.ndim == 1 else rng.standard_normal(leaf.shape) / 2
        return values.astype(np.float32)

    return jax.tree.map(draw, nn.meta.unbox(shapes)["params"])


class Double(nn.Module):
    """Stands for attention: twice its input."""

    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    param_dtype: str

    def __call__(self, x, mask, positions, cache=None):
        return 2 * x, cache


class AddTen(nn.Module):
    """Stands for the feed-forward layer: its input plus ten."""

    embed_dim: int
    mlp_dim: int
    dtype: str
    param_dtype: str

    def __call__(self, x):
        return x + 10


class AddHundred(nn.Module):
    """Stands for a norm: its input plus a hundred."""

    dim: int
    dtype: str
    param_dtype: str

    def __call__(self, x):
        return x + 100


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (ParallelBlock, 1 + 2 * 101 + (101 + 10)),
        (TwoNormParallelBlock, 1 + 2 * 101 + (101 + 10)),
        (SerialBlock, 203 + (203 + 100 + 10)),
        (SandwichBlock, 303 + (303 + 100 + 10 + 100)),
    ],
)
def test_order_of_operations(block, expected):
    x = jnp.ones((1, 2, 4))
    layer = block(CONFIG, attention=Double, mlp=AddTen, norm=AddHundred)
    y, cache = layer.apply({}, x, Mask(), jnp.arange(2)[None])
    assert cache is None
    np.testing.assert_array_equal(y, np.full((1, 2, 4), expected))


class CountExperts(nn.Module):
    """Stands for experts: adds what it was told of their numbers, except at padding."""

    embed_dim: int
    mlp_dim: int
    num_experts: int
    num_experts_per_token: int
    dtype: str
    param_dtype: str

    def __call__(self, x, mask):
        told = 10 * self.num_experts + self.num_experts_per_token
        return x + jnp.where(mask.is_token, told, 0)[..., None]


def test_numbers_of_experts_reach_the_feed_forward_layer():
    config = dataclasses.replace(CONFIG, num_experts=4, num_experts_per_token=2)
    layer = ParallelBlock(config, attention=Double, mlp=CountExperts, norm=AddHundred)
    mask = Mask(query_index=jnp.array([[0, -1]]))
    y, _ = layer.apply({}, jnp.ones((1, 2, 4)), mask, jnp.arange(2)[None])
    np.testing.assert_array_equal(y[0, 0], np.full(4, 1 + 2 * 101 + (101 + 42)))
    np.testing.assert_array_equal(y[0, 1], np.full(4, 1 + 2 * 101 + 101))


@pytest.mark.parametrize(
    ("block", "norms"), [(ParallelBlock, 1), (TwoNormParallelBlock, 2), (SerialBlock, 2), (SandwichBlock, 4)]
)
def test_norms_of_a_block(block, norms):
    params = jax.eval_shape(
        lambda key: block(CONFIG).init(key, jnp.zeros((1, 2, 4)), Mask(), jnp.arange(2)[None]), jax.random.key(0)
    )["params"]
    assert sum(name.endswith("norm") for name in params) == norms


def test_query_and_key_norms():
    """Normalised heads: the size of queries and keys no longer matters."""
    norms = {"query_norm": RMSNorm, "key_norm": RMSNorm}
    layer = Attention(embed_dim=4, num_heads=2, num_kv_heads=1, head_dim=4, **norms)
    x, positions = np.random.default_rng(0).standard_normal((1, 3, 4)).astype(np.float32), jnp.arange(3)[None]
    params = draw_params(layer, x)
    assert params["query_norm"]["scale"].shape == params["key_norm"]["scale"].shape == (4,)
    run = jax.jit(functools.partial(layer.apply, mask=Mask(), positions_BL=positions), compiler_options=FAST)
    large = {**params, **{name: {"kernel": 50 * params[name]["kernel"]} for name in ("query", "key")}}
    np.testing.assert_allclose(run({"params": params}, x)[0], run({"params": large}, x)[0], rtol=0, atol=1e-4)
    plain = {**params, "query_norm": {"scale": 3 * params["query_norm"]["scale"]}}
    assert np.abs(run({"params": params}, x)[0] - run({"params": plain}, x)[0]).max() > 1e-3


def test_logit_scale_and_window_reach_attention():
    x, positions = np.random.default_rng(0).standard_normal((1, 4, 4)).astype(np.float32), jnp.arange(4)[None]
    shapes = {"embed_dim": 4, "num_heads": 2, "num_kv_heads": 2, "head_dim": 2}
    params = draw_params(Attention(**shapes), x)
    value = np.einsum("bld,dnh->blnh", x, params["value"]["kernel"])
    # A window of one key is the value itself; logits of zero are a plain mean.
    for options, seen in [
        ({"window": 1}, value),
        ({"logit_scale": 0.0}, value.cumsum(1) / np.arange(1, 5)[:, None, None]),
    ]:
        got, _ = Attention(**shapes, **options).apply({"params": params}, x, Mask(), positions)
        expected = np.einsum("blnh,nhd->bld", seen, params["out"]["kernel"])
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
