"""What is handed to cuDNN, held to the reference through JAX's own form of the same function."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.layers.masks import Mask, make_mask
from t5x_scale.layers.ops.attention import BLOCK, attention, choose, cudnn
from t5x_scale.layers.ops.attention.case import make_case
from t5x_scale.layers.ops.attention.reference import attention_reference


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(cudnn, "current_platform", lambda: "gpu")
    monkeypatch.setattr("t5x_scale.layers.ops.attention.current_platform", lambda: "gpu")


def _case(dtype=jnp.bfloat16, heads=4, kv_heads=2, size=16, mask=Mask(), window=None, soft_cap=None, bias=None):
    q, k = jnp.zeros((2, 8, heads, size), dtype), jnp.zeros((2, 8, kv_heads, size), dtype)
    return make_case(q, k, mask, window, soft_cap, bias, BLOCK)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_arguments_mean_what_the_reference_means(monkeypatch, kv_heads):
    monkeypatch.setattr(cudnn, "BACKEND", "xla")
    keys = jax.random.split(jax.random.key(0), 4)
    q, d_out = (jax.random.normal(key, (2, 7, 4, 8)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, 7, kv_heads, 8)) for key in keys[2:])

    @functools.partial(jax.jit, static_argnums=0)
    def both(attend):
        out, pull = jax.vjp(lambda *args: attend(*args, Mask(), scale=0.2), q, k, v)
        return out, *pull(d_out)

    for ours, wanted in zip(both(cudnn.attention_cudnn), both(attention_reference), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=2e-6)


def test_a_gpu_takes_it_for_plain_causal_rows(on_gpu):
    assert choose(_case()) == "cudnn"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": jnp.float32}, "not in float32"),
        ({"mask": make_mask(segments=jnp.ones((2, 8), jnp.int32))}, "packed"),
        ({"mask": make_mask(prefix=jnp.ones((2, 8), jnp.int32))}, "prefix"),
        ({"mask": dataclasses.replace(Mask(), window=jnp.int32(4))}, "window"),
        ({"window": 4}, "window"),
        ({"soft_cap": 30.0}, "capped"),
        ({"bias": jnp.zeros((2, 4, 8, 8))}, "added"),
        ({"size": 12}, "size 12"),
        ({"size": 264}, "size 264"),
    ],
)
def test_what_it_does_not_cover_is_said_and_computed_otherwise(on_gpu, change, reason):
    case = _case(**change)
    assert reason in cudnn.unsupported(case)
    assert choose(case) != "cudnn"
    with pytest.raises(UserError, match="'cudnn' does not cover this"):
        choose(case, "cudnn")


def test_a_program_for_a_gpu_that_is_not_here_is_traced_for_its_shapes(on_gpu):
    q, k = jnp.zeros((1, 8, 4, 8), jnp.bfloat16), jnp.zeros((1, 8, 1, 8), jnp.bfloat16)
    out = jax.eval_shape(lambda q, k: attention(q, k, k, Mask(), scale=1.0, implementation="cudnn"), q, k)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)


def test_other_platforms_are_refused_by_name():
    q = jnp.zeros((1, 4, 2, 8), jnp.bfloat16)
    with pytest.raises(UserError, match="cuDNN is for GPUs, and the platform is cpu"):
        attention(q, q, q, Mask(), scale=1.0, implementation="cudnn")


def test_the_forward_kernel_is_saveable():
    class Primitive:
        name = "dot_product_attention_fwd_wrapper"

    assert cudnn.is_saveable(Primitive(), 1, shape=2)
    assert not cudnn.is_saveable(jax.lax.exp_p)
