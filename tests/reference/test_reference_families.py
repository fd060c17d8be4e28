"""Imported models against `transformers`: logits, losses and gradients, and the way back, for every family."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers import (
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)

from t5x_scale.core.lazy import cast, from_array
from t5x_scale.core.leaves import Leaf, Origin
from t5x_scale.core.trees import flatten, unflatten
from t5x_scale.interop.registry import find_family, read_weights, write_weights
from t5x_scale.interop.safetensors_files import read_tensors, write_tensors
from t5x_scale.losses import Projection, cross_entropy
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.assembly import axes_of, to_model
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.weights import Weights

LENGTH = 33  # Longer than every window below.
VOCAB = 101
LOGITS_WITHIN = 2e-4  # Absolute, float32.
CPU = {"attn_implementation": "eager", "dtype": torch.float32}

SHAPES = {"vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
ONE_KV = {**SHAPES, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 10}
TWO_KV = {**SHAPES, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
NO_SIZE = {**SHAPES, "num_attention_heads": 4, "num_key_value_heads": 2}
SCALED = {"factor": 4.0, "rope_theta": 500.0}
FROM_8 = {"original_max_position_embeddings": 8}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **FROM_8, **SCALED}
YARN = {"rope_type": "yarn", **FROM_8, **SCALED}
NEOX = {**SHAPES, "num_attention_heads": 4}
GPT2 = {"vocab_size": VOCAB, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 40}

CASES = {
    "llama one kv head": LlamaConfig(**ONE_KV),
    "llama two kv heads, tied, biases": LlamaConfig(
        **TWO_KV, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5
    ),
    "llama linear": LlamaConfig(**NO_SIZE, rope_parameters={"rope_type": "linear", **SCALED}),
    "llama llama3": LlamaConfig(**NO_SIZE, rope_parameters=LLAMA3),
    "llama yarn": LlamaConfig(**TWO_KV, rope_parameters=YARN),
    "llama yarn in DeepSeek's form": LlamaConfig(
        **TWO_KV, rope_parameters={**YARN, "mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 16.0, "truncate": False}
    ),
    "mistral": MistralConfig(**ONE_KV, sliding_window=7),
    "mistral, odd width, no window": MistralConfig(**{**ONE_KV, "hidden_size": 22}, sliding_window=None),
    "qwen2": Qwen2Config(**NO_SIZE),
    "qwen2 upper windows": Qwen2Config(**NO_SIZE, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": Qwen3Config(**ONE_KV, tie_word_embeddings=True),
    "qwen3 windows, biases": Qwen3Config(
        **TWO_KV, attention_bias=True, use_sliding_window=True, sliding_window=5, max_window_layers=2
    ),
    "gemma": GemmaConfig(**ONE_KV),
    "gemma untied, says gelu": GemmaConfig(**TWO_KV, tie_word_embeddings=False, hidden_act="gelu", attention_bias=True),
    "gemma2": Gemma2Config(
        **TWO_KV, sliding_window=6, query_pre_attn_scalar=17, attn_logit_softcapping=3.0, final_logit_softcapping=5.0
    ),
    "gemma2 without caps": Gemma2Config(
        **ONE_KV,
        sliding_window=6,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        layer_types=["full_attention", "full_attention", "sliding_attention"],
    ),
    "gpt_neox": GPTNeoXConfig(**NEOX, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.67}),
    "gpt_neox serial, tied": GPTNeoXConfig(
        **NEOX, use_parallel_residual=False, tie_word_embeddings=True, hidden_act="gelu_fast", attention_bias=False
    ),
    "gpt2": GPT2Config(**GPT2),
    "gpt2 untied": GPT2Config(**GPT2, tie_word_embeddings=False, n_inner=36, scale_attn_weights=False),
    "mixtral": MixtralConfig(**ONE_KV, num_local_experts=3, num_experts_per_tok=2),
    "mixtral windows": MixtralConfig(**TWO_KV, num_local_experts=5, num_experts_per_tok=3, sliding_window=6),
    "cohere": CohereConfig(**ONE_KV),
    "cohere untied, biases": CohereConfig(**NO_SIZE, tie_word_embeddings=False, attention_bias=True, logit_scale=0.5),
}


def make(config, dtype=torch.float32, seed=0):
    """A model of theirs with every parameter drawn, those too that their own initialisation leaves at 0 or 1."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.to(dtype).eval()


def save(model, directory):
    """Two shards at least, written by `transformers`; returns the config.json that it wrote."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    model.save_pretrained(directory, max_shard_size=int(size * 0.7))
    assert len(list(directory.glob("model-*.safetensors"))) >= 2
    return json.loads((directory / "config.json").read_text())


def tokens(rows=2):
    """Random tokens [rows, LENGTH]."""
    return np.random.default_rng(0).integers(0, VOCAB, (rows, LENGTH))


def in_float32(weights):
    """The model and its parameters, computed and held in float32."""
    architecture = weights.architecture.with_config(dtype="float32", param_dtype="float32")
    params = {path: jnp.asarray(cast(leaf.array, "float32").read()) for path, leaf in weights.leaves.items()}
    return to_model(architecture), unflatten(params)


def our_logits(weights, inputs):
    """Of weights of ours."""
    model, params = in_float32(weights)
    return np.asarray(jax.jit(model.logits)(params, {"decoder_input_tokens": jnp.asarray(inputs, jnp.int32)}))


def their_logits(model, inputs):
    """Of a model of theirs."""
    with torch.no_grad():
        return model(torch.tensor(inputs)).logits.numpy()


@pytest.mark.parametrize("name", CASES)
def test_logits(name, tmp_path):
    model = make(CASES[name])
    weights = read_weights(save(model, tmp_path), read_tensors(tmp_path))
    wanted = their_logits(model, tokens())
    assert wanted.std() > 100 * LOGITS_WITHIN
    np.testing.assert_allclose(our_logits(weights, tokens()), wanted, rtol=0, atol=LOGITS_WITHIN)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_bytes_come_back_and_load(name, tmp_path):
    model = make(CASES[name], torch.bfloat16)
    source, target = tmp_path / "source", tmp_path / "target"
    config = save(model, source)
    family = find_family(config).name
    written, tensors = write_weights(read_weights(config, read_tensors(source)), family)
    originals = read_tensors(source)
    assert tensors.keys() == originals.keys()
    for key, array in tensors.items():
        assert array.dtype == originals[key].dtype == "bfloat16"
        assert array.read().tobytes() == originals[key].read().tobytes(), key
    target.mkdir()
    write_tensors(target, tensors)
    (target / "config.json").write_text(json.dumps(written))
    again = transformers.AutoModelForCausalLM.from_pretrained(target, **CPU)
    assert type(again) is type(model)
    assert again.config.dtype == torch.float32
    assert transformers.AutoConfig.from_pretrained(target).dtype == torch.bfloat16
    original = transformers.AutoModelForCausalLM.from_pretrained(source, **CPU)
    # Not bit for bit: `gelu_fast` is written by the name of the same function in another order of operations.
    np.testing.assert_allclose(their_logits(again, tokens()), their_logits(original, tokens()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["llama two kv heads, tied, biases", "llama yarn", "gpt_neox", "gpt_neox serial, tied"]
)
def test_loss_and_gradients(name, tmp_path):
    model = make(CASES[name])
    config = save(model, tmp_path)
    inputs = tokens()
    their_loss = model(torch.tensor(inputs), labels=torch.tensor(inputs)).loss
    their_loss.backward()
    gradients = {key: from_array(parameter.grad.numpy()) for key, parameter in model.named_parameters()}
    wanted = read_weights(config, gradients).leaves

    ours, params = in_float32(read_weights(config, read_tensors(tmp_path)))
    batch = {"decoder_input_tokens": jnp.asarray(inputs[:, :-1], jnp.int32)}
    targets = jnp.asarray(inputs[:, 1:], jnp.int32)

    def mean_loss(params):
        head, hidden = ours.head(params), ours.hidden(params, batch).hidden
        projection = Projection(head.scale, head.vocab_first, head.soft_cap)
        losses = cross_entropy(hidden, head.table, targets, jnp.ones(targets.shape), projection=projection)
        return losses.total / losses.weight

    loss, found = jax.value_and_grad(mean_loss)(params)
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    for path, gradient in flatten(found).items():
        reference = wanted[path].array.read()
        np.testing.assert_allclose(gradient, reference, rtol=1e-3, atol=1e-5 * np.abs(reference).max(), err_msg=path)


@pytest.mark.parametrize("heads", [(4, 1, 10), (6, 2, 4)])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_palm_goes_out_as_cohere(heads, interleaved, tied, tmp_path):
    num_heads, num_kv_heads, head_dim = heads
    config = ModelConfig(3, 24, 40, num_heads, num_kv_heads, head_dim, VOCAB, "float32", "float32")
    palm = Architecture(
        config, block="parallel", norm="layer", rope_interleaved=interleaved, tied=tied, logit_scale=24**-0.5
    )
    params = flatten(to_model(palm).init(jax.random.key(0)))
    noise = np.random.default_rng(0)
    leaves = {
        path: Leaf(
            from_array(np.asarray(leaf) + 0.2 * noise.standard_normal(leaf.shape, np.float32)),
            axes_of(palm)[path],
            Origin("restored"),
        )
        for path, leaf in params.items()
    }
    weights = Weights(leaves, palm)
    written, tensors = write_weights(weights)
    assert written["model_type"] == "cohere"
    write_tensors(tmp_path, tensors)
    (tmp_path / "config.json").write_text(json.dumps(written))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **CPU)
    wanted = their_logits(theirs, tokens())
    np.testing.assert_allclose(our_logits(weights, tokens()), wanted, rtol=0, atol=LOGITS_WITHIN)

    back = read_weights(written, read_tensors(tmp_path))
    assert dataclasses.replace(back.architecture, rope_interleaved=interleaved) == palm
    np.testing.assert_allclose(our_logits(back, tokens()), wanted, rtol=0, atol=LOGITS_WITHIN)
    if not interleaved:
        for path, leaf in leaves.items():
            np.testing.assert_array_equal(back.leaves[path].array.read(), leaf.array.read())
