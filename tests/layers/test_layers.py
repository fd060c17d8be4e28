"""The small layers against numpy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.layers import mlp
from t5x_scale.layers.embed import TokenEmbedder
from t5x_scale.layers.initializers import FanIn, Normal
from t5x_scale.layers.linear import Linear
from t5x_scale.layers.norm import LayerNorm, RMSNorm

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


class TestNorm:
    @pytest.mark.parametrize("offset", [0.0, 100.0])
    def test_rms(self, offset):
        x, scale = draw(3, 8) + np.float32(offset), draw(8)
        expected = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, -1, keepdims=True) + 1e-6) * scale
        got = RMSNorm(8).apply({"params": {"scale": scale}}, x)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("use_bias", [False, True])
    def test_layer_norm(self, use_bias):
        x, params = draw(3, 8) + np.float32(50), {"scale": draw(8), "bias": draw(8)}
        wide = x.astype(np.float64)
        expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6) * params["scale"]
        if use_bias:
            expected = expected + params["bias"]
        else:
            del params["bias"]
        layer = LayerNorm(8, use_bias=use_bias)
        assert set(layer.init(jax.random.key(0), x)["params"]) == set(params)
        np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=2e-5)

    @pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
    def test_offset_is_added_to_the_scale(self, norm):
        """Stored scales near 0: in bfloat16 a sum with 1 would lose them."""
        x, stored = draw(3, 8), (draw(8) / 1000).astype(jnp.bfloat16)
        plain = norm(8).apply({"params": norm(8).init(jax.random.key(0), x)["params"] | {"scale": np.ones(8)}}, x)
        layer = norm(8, offset=1.0, param_dtype=jnp.bfloat16)
        params = layer.init(jax.random.key(0), x)["params"]
        assert not params["scale"].value.any()
        got = layer.apply({"params": params | {"scale": stored}}, x)
        np.testing.assert_allclose(got, plain * (1 + stored.astype(np.float32)), rtol=1e-6, atol=1e-7)

    def test_bfloat16_in_and_out_is_float32_within(self):
        # 256 + 1 is 256 in bfloat16: a mean taken there would lose the differences.
        x = jnp.asarray([[256.0, 258.0, 260.0, 262.0]], jnp.bfloat16)
        got = LayerNorm(4, use_bias=False, dtype=jnp.bfloat16).apply({"params": {"scale": np.ones(4)}}, x)
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(got, np.float32)[0], [-1.3416, -0.4472, 0.4472, 1.3416], rtol=2**-8)


class TestLinear:
    def test_several_dimensions_each_way(self):
        x, kernel, bias = draw(2, 3, 4, 5), draw(4, 5, 6, 7), draw(6, 7)
        layer = Linear((4, 5), (6, 7), ("heads", "kv", "embed", "mlp"), use_bias=True)
        got = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
        expected = x.reshape(6, 20).astype(np.float64) @ kernel.reshape(20, 42) + bias.reshape(42)
        np.testing.assert_allclose(got, expected.reshape(2, 3, 6, 7), rtol=1e-5, atol=1e-5)

    def test_parameters(self):
        layer = Linear((64, 2), (128,), ("embed", "kv", "mlp"), use_bias=True)
        params = layer.init(jax.random.key(0), np.zeros((1, 64, 2)))["params"]
        assert params["kernel"].names == ("embed", "kv", "mlp")
        assert params["bias"].names == ("mlp",)
        assert np.std(params["kernel"].value) == pytest.approx(128**-0.5, rel=0.03)
        assert not params["bias"].value.any()

    def test_compute_dtype_is_not_the_stored_one(self):
        layer = Linear((4,), (3,), ("embed", "mlp"), dtype=jnp.bfloat16)
        variables = layer.init(jax.random.key(0), draw(2, 4))
        assert variables["params"]["kernel"].value.dtype == jnp.float32
        assert layer.apply(variables, draw(2, 4)).dtype == jnp.bfloat16

    @pytest.mark.parametrize(("in_shape", "out_shape"), [((4,), (5, 6)), ((3, 4), (5,))])
    def test_gradients(self, in_shape, out_shape):
        x, kernel = draw(2, 3, 4), draw(*in_shape, *out_shape)
        layer = Linear(in_shape, out_shape, ("heads", "kv", "embed"))
        out, pull = jax.vjp(lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x), x, kernel)
        plain, plain_pull = jax.vjp(lambda x, kernel: jnp.tensordot(x, kernel, len(in_shape)), x, kernel)
        np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-5)
        d_out = draw(*out.shape)
        for got, expected in zip(pull(d_out), plain_pull(d_out), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


class TestMlp:
    def test_activations(self):
        x = np.linspace(-3, 3, 13)
        erf = np.array([math.erf(v / math.sqrt(2)) for v in x])
        expected = {
            "silu": x / (1 + np.exp(-x)),
            "gelu": 0.5 * x * (1 + erf),
            "gelu_tanh": 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            "relu": np.where(x > 0, x, 0),
            "relu_squared": np.where(x > 0, x, 0) ** 2,
        }
        assert expected.keys() == mlp.ACTIVATIONS.keys()
        for name, values in expected.items():
            got = mlp.to_activation(name)(jnp.asarray(x, jnp.float32))
            np.testing.assert_allclose(got, values, rtol=1e-5, atol=1e-6, err_msg=name)

    def test_unknown_activation(self):
        with pytest.raises(UserError, match=r"unknown activation 'gelo' \(did you mean 'gelu'"):
            mlp.to_activation("gelo")

    def test_plain_with_biases(self):
        params = {"wi": {"kernel": draw(4, 6), "bias": draw(6)}, "wo": {"kernel": draw(6, 4), "bias": draw(4)}}
        x = draw(2, 3, 4)
        got = mlp.Mlp(4, 6, "relu", use_bias=True).apply({"params": params}, x)
        h = np.maximum(x.astype(np.float64) @ params["wi"]["kernel"] + params["wi"]["bias"], 0)
        np.testing.assert_allclose(got, h @ params["wo"]["kernel"] + params["wo"]["bias"], rtol=1e-5, atol=1e-5)


class TestEmbedder:
    def test_rows(self):
        table = draw(5, 3)
        got = TokenEmbedder(5, 3).apply({"params": {"embedding": table}}, np.array([[4, 0], [1, 1]]))
        np.testing.assert_array_equal(got, table[[[4, 0], [1, 1]]])

    def test_scale_is_rounded_to_the_compute_dtype(self):
        table = draw(5, 3).astype(jnp.bfloat16)
        layer = TokenEmbedder(5, 3, scale=2048**0.5, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        got = layer.apply({"params": {"embedding": table}}, np.array([[4, 0]]))
        assert got.dtype == jnp.bfloat16
        # 45.25, not 45.2548...: the product is rounded once more.
        expected = (table[[[4, 0]]].astype(np.float32) * 45.25).astype(jnp.bfloat16)
        np.testing.assert_array_equal(np.asarray(got), expected)

    def test_a_bad_id_does_not_poison_the_row(self):
        got = TokenEmbedder(5, 3).apply({"params": {"embedding": draw(5, 3)}}, np.array([[9, 1]]))
        assert np.isfinite(got).all()


def test_initializers():
    key = jax.random.key(0)
    assert np.std(Normal(0.5)(key, (64, 64), jnp.float32, 7)) == pytest.approx(0.5, rel=0.03)
    assert np.std(FanIn()(key, (64, 64), jnp.float32, 16)) == pytest.approx(0.25, rel=0.03)
    assert np.std(FanIn(4.0)(key, (64, 64), jnp.float32, 16)) == pytest.approx(0.5, rel=0.03)
