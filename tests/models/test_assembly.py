"""Architectures become models and come back from what models say of themselves."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from architectures import architectures

from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten
from t5x_scale.interop.families.fields import ACTIVATION_NAMES
from t5x_scale.layers import mlp, routing
from t5x_scale.models import architecture, composition
from t5x_scale.models.architecture import Architecture, RopeScalingValues, shortest_cycle
from t5x_scale.models.assembly import axes_of, from_description, shapes_of, to_model
from t5x_scale.models.config import ModelConfig

CONFIG = ModelConfig(2, 8, 12, 4, 2, 6, 13)
LAYERS, ATTENTION = "decoder/layers", "decoder/layers/self_attention"


def described(architecture):
    """What a checkpoint has on record."""
    return json.loads(json.dumps(to_model(architecture).architecture()))


def test_the_words_of_an_architecture_are_those_of_its_parts():
    """They are written down twice: one side knows no JAX, the other no architecture."""
    assert architecture.ROUTERS == routing.ROUTERS
    assert set(ACTIVATION_NAMES) <= set(mlp.ACTIVATIONS)
    for words, parts in (
        (architecture.BLOCKS, composition.BLOCKS),
        (architecture.NORMS, composition.NORMS),
        (architecture.MLPS, composition.MLPS),
        (architecture.POSITIONS, composition.POSITIONS),
        (architecture.ROPE_SCALINGS, composition.SCALINGS),
    ):
        assert words == tuple(parts)


@settings(max_examples=25, deadline=None)
@given(architectures())
def test_descriptions_come_back(architecture):
    assert from_description(described(architecture)) == architecture.normalized()


@settings(max_examples=200)
@given(architectures())
def test_normal_form(architecture):
    normal = architecture.normalized()
    assert normal.normalized() == normal
    hash(normal)


@given(st.lists(st.none() | st.integers(1, 2), max_size=6), st.integers(1, 9))
def test_shortest_cycle(windows, layers):
    cycle = shortest_cycle(windows, layers)
    assert len(cycle) <= max(len(windows), 0)
    assert len(cycle) <= layers
    for layer in range(layers):
        window = windows[layer % len(windows)] if windows else None
        assert (cycle[layer % len(cycle)] if cycle else None) == window


def test_what_does_not_matter_makes_no_difference():
    plain = Architecture(CONFIG)
    for idle in (
        {"norm_bias": True},
        {"max_length": 512},
        {"router": "topk_softmax", "gate_scale": 3.0},
        {"windows": (None, None)},
    ):
        assert Architecture(CONFIG, **idle).normalized() == plain
    scaled = [
        Architecture(CONFIG, rope_scaling=RopeScalingValues("llama3", 8.0, 8192, beta_fast=beta)) for beta in (1, 2)
    ]
    assert scaled[0] != scaled[1]
    assert scaled[0].normalized() == scaled[1].normalized()


def test_paths_axes_and_shapes():
    architecture = Architecture(
        CONFIG,
        block="sandwich",
        norm="layer",
        norm_bias=True,
        attention_bias=True,
        output_bias=True,
        qk_norm=True,
        positions="learned",
        max_length=5,
        mlp="plain",
        mlp_bias=True,
    )
    norms = ("pre_norm", "post_attention_norm", "pre_mlp_norm", "post_mlp_norm")
    layers = {f"{norm}/{leaf}": ((8,), ("embed",)) for norm in norms for leaf in ("scale", "bias")}
    layers |= {
        f"self_attention/{x}_norm/{leaf}": ((6,), ("kv",)) for x in ("query", "key") for leaf in ("scale", "bias")
    }
    for name, number, axis in (("query", 4, "heads"), ("key", 2, "kv_heads"), ("value", 2, "kv_heads")):
        layers[f"self_attention/{name}/kernel"] = ((8, number, 6), ("embed", axis, "kv"))
        layers[f"self_attention/{name}/bias"] = ((number, 6), (axis, "kv"))
    layers |= {
        "self_attention/out/kernel": ((4, 6, 8), ("heads", "kv", "embed")),
        "self_attention/out/bias": ((8,), ("embed",)),
        "mlp/wi/kernel": ((8, 12), ("embed", "mlp")),
        "mlp/wi/bias": ((12,), ("mlp",)),
        "mlp/wo/kernel": ((12, 8), ("mlp", "embed")),
        "mlp/wo/bias": ((8,), ("embed",)),
    }
    expected = {f"decoder/layers/{path}": ((2, *shape), ("layers", *axes)) for path, (shape, axes) in layers.items()}
    expected |= {
        "token_embedder/embedding": ((13, 8), ("vocab", "embed")),
        "position_embedder/embedding": ((5, 8), (None, "embed")),
        "decoder/final_norm/scale": ((8,), ("embed",)),
        "decoder/final_norm/bias": ((8,), ("embed",)),
        "logits/kernel": ((8, 13), ("embed", "vocab")),
    }
    assert shapes_of(architecture) == {path: shape for path, (shape, _) in expected.items()}
    assert axes_of(architecture) == {path: axes for path, (_, axes) in expected.items()}
    tied = Architecture(CONFIG, tied=True, block="parallel")
    assert "logits/kernel" not in shapes_of(tied)
    assert "decoder/layers/pre_mlp_norm/scale" not in shapes_of(tied)


def test_equal_ways_of_saying_it_are_one():
    """A scale left to the default and the same scale as a number; one window for all as a cycle of one."""
    tied = described(Architecture(CONFIG, tied=True, logit_scale=8**-0.5, windows=(3,)))
    assert tied["model"]["logit_scale"] == 8**-0.5
    tied["model"]["logit_scale"] = None
    tied["decoder/layers/self_attention"]["window"] = None
    tied["decoder_model"]["windows"] = tied["decoder"]["windows"] = [3, 3]
    architecture = from_description(tied)
    assert (architecture.logit_scale, architecture.windows) == (8**-0.5, (3,))


def test_an_older_record_is_read():
    """It knows nothing of what came later: that is at its default."""
    old = described(Architecture(CONFIG, attention_soft_cap=20.0))
    for module in old.values():
        for setting in ("offset", "scale", "windows", "scaling"):
            module.pop(setting, None)
        for experts in ("num_experts", "num_experts_per_token"):
            module.get("config", {}).pop(experts, None)
    assert from_description(old) == Architecture(CONFIG, attention_soft_cap=20.0)


@pytest.mark.parametrize(
    ("path", "setting", "value", "message"),
    [
        (LAYERS, "class", "SandwitchBlock", r"class of 'decoder/layers' is 'SandwitchBlock'.*'SandwichBlock'"),
        ("decoder/final_norm", "epsilon", 0.5, rf"cannot say epsilon = \S+ of '{LAYERS}/pre_norm'; it would be 0.5"),
        (ATTENTION, "sinks", 4, f"cannot say sinks = 4 of '{ATTENTION}'"),
        (f"{ATTENTION}/key", "use_bias", True, f"cannot say use_bias = True of '{ATTENTION}/key'"),
        (f"{LAYERS}/adapter", "class", "Lora", rf"cannot say the module '{LAYERS}/adapter' \(Lora\)"),
        ("decoder_model", "windows", [2, None], r"window = 3 of .* beside windows = \[2, None\]"),
        ("model", "class", "EncoderModel", r"cannot say class = 'EncoderModel' of 'model'"),
    ],
)
def test_what_an_architecture_cannot_say(path, setting, value, message):
    description = described(Architecture(CONFIG, windows=(3,)))
    description.setdefault(path, {})[setting] = value
    with pytest.raises(UserError, match=message):
        from_description(description)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("decoder/layers/self_attention", "needs the module 'decoder/layers/self_attention'"),
        ("decoder/layers/pre_norm", r"cannot leave out the module 'decoder/layers/pre_norm' \(RMSNorm\)"),
    ],
)
def test_what_an_architecture_needs(path, message):
    description = described(Architecture(CONFIG))
    del description[path]
    with pytest.raises(UserError, match=message):
        from_description(description)


def test_experts():
    config = ModelConfig(2, 8, 12, 4, 2, 6, 13, num_experts=3, num_experts_per_token=2)
    architecture = Architecture(config, router="topk_softmax", gate_scale=2.0)
    experts = {
        path.removeprefix("decoder/layers/mlp/"): axes for path, axes in axes_of(architecture).items() if "mlp/" in path
    }
    assert experts == {
        "router/kernel": ("layers", "embed", "expert"),
        "experts/wi_0/kernel": ("layers", "expert", "embed", "mlp"),
        "experts/wi_1/kernel": ("layers", "expert", "embed", "mlp"),
        "experts/wo/kernel": ("layers", "expert", "mlp", "embed"),
    }
    assert shapes_of(architecture)["decoder/layers/mlp/experts/wo/kernel"] == (2, 3, 12, 8)
    description = described(architecture)
    # What is asked of the router while training is no part of what it computes.
    description["decoder/layers/mlp"]["balance_loss"] = 0.5
    assert from_description(description) == architecture
    with pytest.raises(UserError, match="experts have no biases"):
        to_model(Architecture(config, mlp_bias=True))


def test_learned_positions_need_a_length():
    with pytest.raises(UserError, match=r"max_length is 0: learned positions need the length"):
        to_model(Architecture(CONFIG, positions="learned"))


def test_everything_is_drawn_alike():
    config = ModelConfig(2, 32, 48, 4, 2, 16, 64)
    model = to_model(Architecture(config, positions="learned", max_length=40, norm_offset=1.0))
    for path, leaf in flatten(jax.jit(model.init)(jax.random.key(0))).items():
        if path.endswith("scale"):
            assert not np.asarray(leaf).any(), path
        else:
            assert np.std(leaf) == pytest.approx(0.02, rel=0.1), path
