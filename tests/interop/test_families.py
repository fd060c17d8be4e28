"""Every family without `transformers`: configurations and tensors there and back, and what is refused."""

import dataclasses
import json
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.core.lazy import from_array
from t5x_scale.core.leaves import Leaf, Origin
from t5x_scale.interop.carrying import canonical, name_refused
from t5x_scale.interop.families import FAMILIES
from t5x_scale.interop.mapping import expected_shapes
from t5x_scale.interop.registry import check_carries, family_for, find_family, read_weights, to_config, write_weights
from t5x_scale.models.architecture import Architecture, RopeScalingValues
from t5x_scale.models.assembly import shapes_of
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.weights import Weights
from tests.fakes.architectures import architectures

LLAMA_SHAPES = {
    "vocab_size": 101,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
# A small config.json of each family, with no field that has a default.
SMALL = {name: {"model_type": name, **LLAMA_SHAPES} for name in FAMILIES if name != "gpt2"}
SMALL["gpt2"] = {"model_type": "gpt2", "vocab_size": 101, "n_embd": 24, "n_layer": 3, "n_head": 4}

# What may be changed in a config.json of each family.
ROPES = [
    {},
    {"rope_theta": 1000000.0},
    {"rope_theta": 500000, "rope_scaling": {"type": "linear", "factor": 2}},
    {"rope_parameters": {"rope_theta": 300.0, "rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 32},
]
BIASES = {"attention_bias": [False, True]}
WINDOWS = {"use_sliding_window": [False, True], "sliding_window": [4], "max_window_layers": [0, 1, 3]}
LLAMA_LIKE = {
    "rope": ROPES,
    "num_key_value_heads": [None, 1, 2],
    "head_dim": [None, 10],
    "tie_word_embeddings": [False, True],
    "torch_dtype": ["float32", "bfloat16", "float16"],
    "max_position_embeddings": [64],
}
CHOICES = {
    "llama": {**LLAMA_LIKE, **BIASES, "mlp_bias": [False, True], "hidden_act": ["silu", "gelu", "relu"]},
    "mistral": {**LLAMA_LIKE, "sliding_window": [None, 5]},
    "qwen2": {**LLAMA_LIKE, **WINDOWS},
    "qwen3": {**LLAMA_LIKE, **BIASES, **WINDOWS},
    "mixtral": {**LLAMA_LIKE, "num_local_experts": [3], "num_experts_per_tok": [1, 2], "sliding_window": [None, 5]},
    "gemma": {**LLAMA_LIKE, **BIASES, "hidden_act": ["gelu", "gelu_pytorch_tanh"]},
    "gemma2": {
        **LLAMA_LIKE,
        **BIASES,
        "query_pre_attn_scalar": [10, 24, 256],
        "final_logit_softcapping": [None, 30.0],
        "layer_types": [None, ["full_attention"] * 3, ["full_attention", "sliding_attention", "sliding_attention"]],
    },
    "gpt_neox": {
        "rope": [{}, {"rotary_pct": 1.0, "rotary_emb_base": 50}, {"rope_parameters": {"partial_rotary_factor": 0.5}}],
        "use_parallel_residual": [False, True],
        "hidden_act": ["gelu", "gelu_new", "relu"],
        "attention_bias": [False, True],
        "tie_word_embeddings": [False, True],
    },
    "gpt2": {"n_inner": [None, 50], "tie_word_embeddings": [False, True], "scale_attn_weights": [False, True]},
    "cohere": {**LLAMA_LIKE, **BIASES, "logit_scale": [0.0625, 1.0]},
}


@st.composite
def configs(draw, name):
    """A config.json of a family."""
    config = dict(SMALL[name])
    for field, values in CHOICES[name].items():
        if draw(st.booleans()):
            value = draw(st.sampled_from(values))
            config |= value if field == "rope" else {field: value}
    return json.loads(json.dumps(config))


def random_tensors(architecture, family, dtype=ml_dtypes.bfloat16):
    """Tensors of the family for an architecture, and no two elements alike as far as the dtype goes."""
    draw = np.random.default_rng(0)
    shapes = expected_shapes(family.rows(architecture), shapes_of(architecture))
    return {name: from_array(draw.standard_normal(shape).astype(dtype)) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_configurations_there_and_back(name, data):
    family = FAMILIES[name]
    config = data.draw(configs(name))
    architecture = family.to_architecture(config)
    written = json.loads(json.dumps(to_config(family, architecture)))
    assert find_family(written) is family
    assert canonical(family.to_architecture(written)) == canonical(architecture)
    assert to_config(family, family.to_architecture(written)) == written


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=4, deadline=None)
@given(st.data())
def test_tensors_there_and_back(name, data):
    family = FAMILIES[name]
    config = data.draw(configs(name))
    tensors = random_tensors(family.to_architecture(config), family)
    weights = read_weights(config, tensors)
    assert {path: leaf.shape for path, leaf in weights.leaves.items()} == shapes_of(weights.architecture)
    written, back = write_weights(weights, name)
    assert written["torch_dtype"] == "bfloat16"
    assert back.keys() == tensors.keys()
    for key, array in back.items():
        assert array.read().tobytes() == tensors[key].read().tobytes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(architectures(), st.sampled_from(sorted(FAMILIES)))
def test_what_is_carried_says_the_same_and_what_is_not_is_refused(architecture, name):
    family = FAMILIES[name]
    if name_refused(family, architecture):
        with pytest.raises(UserError, match=f"^{name} cannot carry this model: it lacks "):
            check_carries(family, architecture)
        return
    back = family.to_architecture(to_config(family, architecture))
    same = {field: getattr(canonical(architecture), field) for field in family.absorbed}
    config = dataclasses.replace(back.config, dtype=architecture.config.dtype)
    assert canonical(dataclasses.replace(back, config=config, **same)) == canonical(architecture)


PALM = Architecture(
    ModelConfig(3, 24, 40, 4, 1, 10, 101), block="parallel", norm="layer", tied=True, logit_scale=24**-0.5
)
LLAMA = Architecture(ModelConfig(3, 24, 40, 4, 2, 10, 101))


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        (PALM, "cohere"),
        (dataclasses.replace(PALM, rope_interleaved=True), "cohere"),
        (LLAMA, "llama"),
        (LLAMA.with_config(embed_dim=22), "mistral"),
        (dataclasses.replace(LLAMA, windows=(5,)), "mistral"),
        (dataclasses.replace(LLAMA, attention_bias=True), "qwen2"),
        (dataclasses.replace(LLAMA, qk_norm=True), "qwen3"),
        (dataclasses.replace(LLAMA, rope_scaling=RopeScalingValues("ntk", 4.0)), "llama"),
        (LLAMA.with_config(num_experts=4, num_experts_per_token=2), "mixtral"),
        (
            dataclasses.replace(
                LLAMA.with_config(num_experts=4, num_experts_per_token=2), router="topk_softmax", normalize_gates=False
            ),
            "mixtral",
        ),
    ],
)
def test_the_family_that_can_carry_a_model_is_found(architecture, name):
    assert family_for(architecture).name == name


def test_ntk_is_written_as_the_larger_base_that_it_is():
    scaled = dataclasses.replace(LLAMA, rope_base=100.0, rope_scaling=RopeScalingValues("ntk", 4.0))
    config = to_config(FAMILIES["llama"], scaled)
    assert config["rope_scaling"] is None
    assert config["rope_theta"] == pytest.approx(100.0 * 4.0 ** (10 / 8))


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        ({"norm": "rms"}, "norm=rms"),
        ({"norm_bias": True}, "norm_bias=True"),
        ({"windows": (5,)}, r"windows=\[5\]"),
        ({"mlp": "plain"}, "mlp=plain"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"attention_bias": True}, "output_bias=False"),
        ({"rope_fraction": 0.5}, "rope_fraction=0.5"),
        ({"positions": "relative"}, "positions=relative"),
        ({"qk_norm": True}, "qk_norm=True"),
        ({"embedding_scale": 2.0}, "embedding_scale=2.0"),
        ({"logit_soft_cap": 30.0}, "logit_soft_cap=30.0"),
        ({"block": "serial"}, "block=serial"),
    ],
)
def test_features_of_palm_that_cohere_lacks(changes, feature):
    with pytest.raises(UserError, match=f"cohere cannot carry this model: it lacks .*{feature}"):
        family_for(dataclasses.replace(PALM, **changes), "cohere")


@pytest.mark.parametrize(
    ("layers", "embed_dim", "heads", "parameters"),
    [(32, 4096, 16, 8_632_012_800), (64, 8192, 32, 62_495_662_080), (118, 18432, 48, 540_356_474_880)],
)
def test_every_palm_goes_out_as_cohere(layers, embed_dim, heads, parameters):
    shapes = ModelConfig(layers, embed_dim, 4 * embed_dim, heads, 1, 256, 256000)
    palm = dataclasses.replace(PALM, config=shapes, logit_scale=embed_dim**-0.5)
    family = family_for(palm)
    assert family.name == "cohere"
    tensors = expected_shapes(family.rows(palm), shapes_of(palm))
    assert sum(map(math.prod, tensors.values())) == parameters


def test_palm_and_command_r_turn_the_same_pairs():
    family = FAMILIES["cohere"]
    tensors = random_tensors(PALM, family, np.float32)
    weights = read_weights({**to_config(family, PALM), "torch_dtype": "float32"}, tensors)
    theirs = tensors["model.layers.1.self_attn.q_proj.weight"].read().reshape(4, 10, 24)
    ours = weights.leaves["decoder/layers/self_attention/query/kernel"].array.read()[1]
    for pair in range(5):  # Their neighbours 2i and 2i + 1 are our i and i + 5.
        np.testing.assert_array_equal(ours[:, :, pair], theirs[:, 2 * pair].T)
        np.testing.assert_array_equal(ours[:, :, pair + 5], theirs[:, 2 * pair + 1].T)


def small(name, **changes):
    """A small config.json with other fields; `...` takes one away."""
    return {field: value for field, value in {**SMALL[name], **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["LlamaForCausalML"]}, "architectures is 'LlamaForCausalML'.* mean 'LlamaForCausalLM'"),
        ({"model_type": "mixtrel"}, r"model_type is 'mixtrel'.*did you mean 'mixtral'"),
        ({"hidden_size": 3}, "neither 'architectures' nor 'model_type'"),
        (small("llama", hidden_size=..., hiden_size=24), r"no field 'hidden_size' \(did you mean 'hiden_size'\?\)"),
        (small("llama", num_key_value_head=1), "has a field 'num_key_value_head' that is not known .*value_heads"),
        (small("llama", hidden_act="silus"), "hidden_act is 'silus'; supported are silu, .*did you mean 'silu'"),
        (small("llama", num_hidden_layers=0), "num_hidden_layers is 0; it must be a positive integer"),
        (small("llama", num_hidden_layers="3"), "num_hidden_layers is '3'; it must be a positive integer"),
        (small("llama", rms_norm_eps="small"), "rms_norm_eps is 'small'; it must be a number"),
        (small("llama", attention_bias=1), "attention_bias is 1; it must be true or false"),
        (small("llama", num_key_value_heads=3), "num_key_value_heads is 3; it must divide num_attention_heads=4"),
        (small("llama", head_dim=None, num_attention_heads=32), "num_attention_heads is 32; it must be hidden_size=24"),
        (small("mixtral", num_experts_per_tok=9), "num_experts_per_tok is 9; it must be num_local_experts="),
        (small("llama", torch_dtype="int8"), "torch_dtype is 'int8'; supported are float32"),
        (small("llama", rope_scaling={"type": "dynamic", "factor": 2.0}),
         "rope_scaling: type is 'dynamic'; supported are default, linear"),
        (small("llama", rope_parameters={"rope_type": "lama3"}), "rope_type is 'lama3'.*did you mean 'llama3'"),
        (small("llama", rope_scaling={"rope_type": "llama3", "factor": 2.0}, max_position_embeddings=9),
         "rope_scaling has no field 'low_freq_factor'"),
        (small("llama", rope_parameters={"full_attention": {"rope_theta": 1.0}}), "one RoPE for all layers"),
        (small("llama", partial_rotary_factor=0.5), "partial_rotary_factor is 0.5; supported is 1.0"),
        (small("llama", quantization_config={"bits": 4}), "quantization_config is {'bits': 4}; supported is absent"),
        (small("gemma", use_bidirectional_attention=True), "use_bidirectional_attention is True"),
        (small("gemma2", layer_types=["full_attention"]), "layer_types is .*it must be a list of 3"),
        (small("gemma2", layer_types=["full_atention"] * 3), "layer_types is 'full_atention'; supported are full_"),
        (small("gemma2", sliding_window=None), "sliding_window is None; layers of sliding_attention need a window"),
        (small("cohere", use_qk_norm=True), "use_qk_norm is True; supported is False"),
        (small("gpt2", scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
        (small("gpt2", n_head=5), "n_embd is 24; it must be a multiple of n_head=5"),
        (small("mistral", layer_types=["full_attention"] * 2), "layer_types is .*it must be a list of 3"),
        (small("mistral", layer_types=["sliding_attention"] * 3, sliding_window=None), "sliding_window is None"),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        find_family(config).to_architecture(config)


@pytest.mark.parametrize("name", ["mistral", "mixtral"])
@pytest.mark.parametrize(
    ("kinds", "window", "windows"),
    [
        ("fff", None, ()),
        ("sss", 5, (5,)),
        ("fff", 5, ()),
        ("fsf", 5, (None, 5)),
        ("sff", 5, (5, None, None)),
    ],
)
def test_windows_of_listed_layers(name, kinds, window, windows, caplog):
    types = [{"f": "full_attention", "s": "sliding_attention"}[kind] for kind in kinds]
    config = small(name, layer_types=types, sliding_window=window)
    assert FAMILIES[name].to_architecture(config).windows == windows
    # What the class of transformers would compute otherwise is said.
    assert ("gives all layers the window of 5" in caplog.text) == (window is not None and windows != (5,))


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2"])
def test_buffers_and_a_second_copy_of_the_tied_table_are_dropped(name):
    config = small(name, tie_word_embeddings=True)
    family = FAMILIES[name]
    tensors = random_tensors(family.to_architecture(config), family)
    table = next(iter(tensors))
    buffers = {
        "llama": "model.layers.0.self_attn.rotary_emb.inv_freq",
        "gpt_neox": "gpt_neox.layers.2.attention.masked_bias",
        "gpt2": "transformer.h.1.attn.bias",
    }
    more = {buffers[name]: from_array(np.zeros(1, np.float32)), "lm_head.weight": tensors[table]}
    weights = read_weights(config, {**more, **tensors})
    assert sorted(origin.detail for origin in weights.dropped.values()) == [f"equal to {table}", "worked out anew"]
    wrong = from_array(tensors[table].read() + 1)
    with pytest.raises(UserError, match=f"tie_word_embeddings is true, but .* differs from '{table}'"):
        read_weights(config, {**tensors, "lm_head.weight": wrong})
    only_head = {key: array for key, array in tensors.items() if key != table}
    again = read_weights(config, {**only_head, "lm_head.weight": tensors[table]})
    assert again.leaves["token_embedder/embedding"].array.read().tobytes() == tensors[table].read().tobytes()


def test_gpt2_is_also_read_without_its_prefix():
    family = FAMILIES["gpt2"]
    tensors = random_tensors(family.to_architecture(SMALL["gpt2"]), family)
    bare = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    assert "h.0.ln_1.bias" in bare
    _, back = write_weights(read_weights(SMALL["gpt2"], bare), "gpt2")
    assert back.keys() == tensors.keys()
    with pytest.raises(UserError, match=r"there twice: it is also called 'transformer\.wte\.weight'"):
        read_weights(SMALL["gpt2"], {**tensors, "wte.weight": tensors["transformer.wte.weight"]})


def test_weights_that_cannot_be_written_are_named():
    family = FAMILIES["cohere"]
    weights = read_weights(to_config(family, PALM), random_tensors(PALM, family))
    path = "decoder/final_norm/scale"
    bad = Leaf(from_array(np.zeros(23, np.float32)), ("embed",), Origin("restored"))
    with pytest.raises(UserError, match=rf"'{path}' is \[23\] where its architecture makes it \[24\]"):
        write_weights(weights.replace(leaves={**weights.leaves, path: bad}))
    with pytest.raises(UserError, match="does not say what its model computes"):
        write_weights(Weights(weights.leaves))
    with pytest.raises(UserError, match=r"family is 'coher'; .*did you mean 'cohere'"):
        write_weights(weights, "coher")
    relative = dataclasses.replace(PALM, positions="relative")
    with pytest.raises(UserError, match="no family can carry this model; nearest is cohere, which lacks positions=rel"):
        write_weights(Weights(weights.leaves, relative))
