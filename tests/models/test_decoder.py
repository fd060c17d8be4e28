"""Whole decoders against numpy in float64, written from the papers' formulas."""

import functools
import math

import jax
import numpy as np
import pytest

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten, unflatten
from t5x_scale.layers.attention import Attention
from t5x_scale.layers.mlp import Mlp
from t5x_scale.layers.norm import LayerNorm
from t5x_scale.layers.positions import LearnedPositions, NoPositions, Rope
from t5x_scale.models.blocks import ParallelBlock, SerialBlock, TwoNormParallelBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder, Head
from t5x_scale.models.interface import DecoderModel

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
# heads * head_dim is not embed_dim, as in PaLM 540B; mlp_dim is no multiple of anything.
PALM = ModelConfig(
    num_layers=2, embed_dim=12, mlp_dim=20, num_heads=3, num_kv_heads=1, head_dim=8, vocab_size=17, dtype="float32"
)
LLAMA = ModelConfig(
    num_layers=2, embed_dim=16, mlp_dim=24, num_heads=4, num_kv_heads=2, head_dim=4, vocab_size=19, dtype="float32"
)
GPT = ModelConfig(
    num_layers=2, embed_dim=16, mlp_dim=20, num_heads=2, num_kv_heads=2, head_dim=8, vocab_size=19, dtype="float32"
)


def palm(config=PALM, **options):
    norm = functools.partial(LayerNorm, use_bias=False)
    block = functools.partial(ParallelBlock, norm=norm)
    return DecoderModel(config, functools.partial(Decoder, block=block, final_norm=norm, **options))


def llama(**options):
    attention = functools.partial(Attention, positions=functools.partial(Rope, base=500.0))
    block = functools.partial(SerialBlock, attention=attention)
    return DecoderModel(LLAMA, functools.partial(Decoder, block=block, head=Head, **options))


def gpt(block=SerialBlock):
    """Biases everywhere, learned positions, a plain MLP: GPT-3's parts."""
    attention = functools.partial(Attention, positions=NoPositions, use_bias=True, use_output_bias=True)
    mlp = functools.partial(Mlp, use_bias=True)
    block = functools.partial(block, attention=attention, mlp=mlp, norm=LayerNorm)
    table = functools.partial(LearnedPositions, max_length=9)
    return DecoderModel(GPT, functools.partial(Decoder, block=block, final_norm=LayerNorm, position_embedder=table))


def random_params(model, seed=0):
    """Every leaf random, scales and biases too, so that none of them can be left out unnoticed."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        value = rng.standard_normal(leaf.shape)
        if path.endswith("scale"):
            return (1 + 0.3 * value).astype(np.float32)
        return (value * (1.0 if "embed" in path else 0.3)).astype(np.float32)

    return unflatten({path: draw(path, leaf) for path, leaf in flatten(model.abstract_params()).items()})


TOKENS = np.random.default_rng(4).integers(0, 17, (2, 7)).astype(np.int32)


def forward(model, params, tokens=TOKENS):
    logits = jax.jit(lambda p, t: model.logits(p, {fields.INPUT_TOKENS: t}), compiler_options=FAST)
    return logits(params, tokens)


class Reference:
    """Float64 numpy on a flat dict of one sequence's parameters."""

    def __init__(self, params, config):
        self.params = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params).items()}
        self.config = config

    def layer(self, index):
        prefix = "decoder/layers/"
        return {p.removeprefix(prefix): x[index] for p, x in self.params.items() if p.startswith(prefix)}

    @staticmethod
    def layer_norm(x, scale, bias=0.0):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias

    @staticmethod
    def rms_norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    @staticmethod
    def swiglu(x, p):
        gate = x @ p["mlp/wi_0/kernel"]
        return (gate / (1 + np.exp(-gate)) * (x @ p["mlp/wi_1/kernel"])) @ p["mlp/wo/kernel"]

    @staticmethod
    def gelu_mlp(x, p):
        h = x @ p["mlp/wi/kernel"] + p["mlp/wi/bias"]
        h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        return h @ p["mlp/wo/kernel"] + p["mlp/wo/bias"]

    def attention(self, x, p, base):
        """Causal attention head by head; `base` of the rotations, or None without."""
        c, length = self.config, len(x)
        out = np.zeros((length, c.embed_dim)) + p.get("self_attention/out/bias", 0.0)
        for head in range(c.num_heads):
            kv = head * c.num_kv_heads // c.num_heads
            q, k, v = (
                x @ p[f"self_attention/{name}/kernel"][:, h]
                + (p[f"self_attention/{name}/bias"][h] if f"self_attention/{name}/bias" in p else 0.0)
                for name, h in (("query", head), ("key", kv), ("value", kv))
            )
            if base is not None:
                q, k = (self.rotate(y, base) for y in (q, k))
            for i in range(length):
                logits = k[: i + 1] @ q[i] / math.sqrt(c.head_dim)
                weights = np.exp(logits - logits.max())
                out[i] += (weights / weights.sum()) @ v[: i + 1] @ p["self_attention/out/kernel"][head]
        return out

    def rotate(self, x, base):
        half = self.config.head_dim // 2
        angles = np.arange(len(x))[:, None] * base ** (-np.arange(half) / half)
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.concatenate([z.real, z.imag], axis=-1)

    def palm(self, tokens):
        """y = x + MLP(LN(x)) + Attn(LN(x)); the embedding is shared and the logits are scaled by 1/sqrt(d)."""
        table = self.params["token_embedder/embedding"]
        x = table[tokens]
        for index in range(self.config.num_layers):
            p = self.layer(index)
            h = self.layer_norm(x, p["pre_norm/scale"])
            x = x + self.swiglu(h, p) + self.attention(h, p, 10000.0)
        return self.layer_norm(x, self.params["decoder/final_norm/scale"]) @ table.T / math.sqrt(self.config.embed_dim)

    def llama(self, tokens):
        x = self.params["token_embedder/embedding"][tokens]
        for index in range(self.config.num_layers):
            p = self.layer(index)
            x = x + self.attention(self.rms_norm(x, p["pre_norm/scale"]), p, 500.0)
            x = x + self.swiglu(self.rms_norm(x, p["pre_mlp_norm/scale"]), p)
        return self.rms_norm(x, self.params["decoder/final_norm/scale"]) @ self.params["logits/kernel"]

    def gpt(self, tokens, parallel=False):
        table = self.params["token_embedder/embedding"]
        x = table[tokens] + self.params["position_embedder/embedding"][: len(tokens)]
        for index in range(self.config.num_layers):
            p = self.layer(index)
            attended = self.attention(self.layer_norm(x, p["pre_norm/scale"], p["pre_norm/bias"]), p, None)
            y = x if parallel else x + attended
            fed = self.gelu_mlp(self.layer_norm(y, p["pre_mlp_norm/scale"], p["pre_mlp_norm/bias"]), p)
            x = x + attended + fed
        x = self.layer_norm(x, self.params["decoder/final_norm/scale"], self.params["decoder/final_norm/bias"])
        return x @ table.T / math.sqrt(self.config.embed_dim)


@pytest.mark.parametrize("name", ["palm", "llama", "gpt", "two_norms"])
def test_logits_equal_numpy(name):
    model, config, compute = {
        "palm": (palm(), PALM, Reference.palm),
        "llama": (llama(), LLAMA, Reference.llama),
        "gpt": (gpt(), GPT, Reference.gpt),
        "two_norms": (gpt(TwoNormParallelBlock), GPT, functools.partial(Reference.gpt, parallel=True)),
    }[name]
    params = random_params(model)
    expected = np.stack([compute(Reference(params, config), row) for row in TOKENS])
    assert expected.std() > 0.3
    np.testing.assert_allclose(forward(model, params), expected, rtol=1e-4, atol=2e-5)


def test_parameters_of_palm():
    shapes = {path: leaf.shape for path, leaf in flatten(palm().abstract_params()).items()}
    assert shapes == {
        "token_embedder/embedding": (17, 12),
        "decoder/layers/pre_norm/scale": (2, 12),
        "decoder/layers/self_attention/query/kernel": (2, 12, 3, 8),
        "decoder/layers/self_attention/key/kernel": (2, 12, 1, 8),
        "decoder/layers/self_attention/value/kernel": (2, 12, 1, 8),
        "decoder/layers/self_attention/out/kernel": (2, 3, 8, 12),
        "decoder/layers/mlp/wi_0/kernel": (2, 12, 20),
        "decoder/layers/mlp/wi_1/kernel": (2, 12, 20),
        "decoder/layers/mlp/wo/kernel": (2, 20, 12),
        "decoder/final_norm/scale": (12,),
    }
    axes = flatten(palm().axes())
    assert {path: len(names) for path, names in axes.items()} == {path: len(shape) for path, shape in shapes.items()}
    assert axes["decoder/layers/self_attention/out/kernel"] == ("layers", "heads", "kv", "embed")
    assert axes["decoder/layers/self_attention/key/kernel"] == ("layers", "embed", "kv_heads", "kv")
    assert axes["decoder/layers/mlp/wo/kernel"] == ("layers", "mlp", "embed")
    assert axes["token_embedder/embedding"] == ("vocab", "embed")


def test_initial_values_of_palm():
    config = ModelConfig(
        num_layers=2, embed_dim=32, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=64, vocab_size=500
    )
    params = flatten(jax.jit(palm(config).init, compiler_options=FAST)(jax.random.key(0)))
    fan_in = {"query": 32, "key": 32, "value": 32, "out": 4 * 64, "wi_0": 32, "wi_1": 32, "wo": 128}
    for path, leaf in params.items():
        leaf = np.asarray(leaf)
        assert leaf.dtype == np.float32
        if path.endswith("scale"):
            assert (leaf == 1).all(), path
            continue
        # PaLM section 5: N(0, 1) for the embedding, standard deviation 1/sqrt(n_in) for kernels.
        deviation = 1.0 if path == "token_embedder/embedding" else fan_in[path.split("/")[-2]] ** -0.5
        tolerance = 4 / math.sqrt(2 * leaf.size)
        assert leaf.std() == pytest.approx(deviation, rel=tolerance), path
        assert abs(leaf.mean()) < 4 * deviation / math.sqrt(leaf.size), path
        if "/layers/" in path:
            assert np.corrcoef(leaf[0].ravel(), leaf[1].ravel())[0, 1] == pytest.approx(0, abs=0.1), path


def test_initial_values_of_learned_positions_and_head():
    params = flatten(jax.jit(gpt().init, compiler_options=FAST)(jax.random.key(0)))
    assert np.std(params["position_embedder/embedding"]) == pytest.approx(0.02, rel=0.25)
    params = flatten(jax.jit(llama().init, compiler_options=FAST)(jax.random.key(0)))
    assert np.std(params["logits/kernel"]) == pytest.approx(16**-0.5, rel=0.2)


def test_packed_documents_are_read_as_if_alone():
    model = palm()
    params = random_params(model)
    first, second = TOKENS[0, :3], TOKENS[0, 3:]
    batch = {
        fields.INPUT_TOKENS: TOKENS[:1],
        fields.SEGMENT_IDS: np.array([[1, 1, 1, 2, 2, 2, 2]], np.int32),
        fields.POSITIONS: np.array([[0, 1, 2, 0, 1, 2, 3]], np.int32),
    }
    got = jax.jit(model.logits, compiler_options=FAST)(params, batch)
    reference = Reference(params, PALM)
    expected = np.concatenate([reference.palm(first), reference.palm(second)])
    np.testing.assert_allclose(got[0], expected, rtol=1e-4, atol=2e-5)


def test_unknown_remat_policy():
    with pytest.raises(UserError, match=r"unknown policy 'minimum' \(did you mean 'minimal'"):
        palm(remat="minimum").abstract_params()


def test_each_remat_policy_computes_less_again_than_the_next():
    flops = {}
    for remat in ("none", "minimal", "full"):
        model = palm(remat=remat)
        tokens = {fields.INPUT_TOKENS: np.zeros((2, 8), np.int32)}
        grad = jax.grad(lambda params, model=model, tokens=tokens: model.hidden(params, tokens).hidden.sum())
        flops[remat] = jax.jit(grad).lower(model.abstract_params()).compile().cost_analysis()["flops"]
    assert flops["none"] < flops["minimal"] < flops["full"]
