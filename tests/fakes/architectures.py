"""Architectures to try things on: every value an `Architecture` can say, in small shapes."""

from __future__ import annotations

from hypothesis import strategies as st

from t5x_scale.models.architecture import BLOCKS, POSITIONS, ROPE_SCALINGS, ROUTERS, Architecture, RopeScalingValues
from t5x_scale.models.config import ModelConfig

_FACTORS = st.sampled_from([1.5, 2.0, 8.0])


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Few and small dimensions, all of them awkward."""
    kv_heads = draw(st.integers(1, 2))
    experts = draw(st.sampled_from([0, 0, 1, 3]))
    return ModelConfig(
        num_layers=draw(st.integers(1, 4)),
        embed_dim=draw(st.integers(2, 9)),
        mlp_dim=draw(st.integers(1, 9)),
        num_heads=kv_heads * draw(st.integers(1, 3)),
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([4, 8, 12])),
        vocab_size=draw(st.integers(1, 30)),
        dtype=draw(st.sampled_from(["bfloat16", "float32"])),
        param_dtype=draw(st.sampled_from(["bfloat16", "float32"])),
        num_experts=experts,
        num_experts_per_token=draw(st.integers(min(experts, 1), experts)),
    )


def rope_scalings() -> st.SearchStrategy[RopeScalingValues]:
    """Scalings of every kind, with values also where their kind has no use for them."""
    return st.builds(
        RopeScalingValues,
        kind=st.sampled_from(ROPE_SCALINGS),
        factor=_FACTORS,
        original_length=st.integers(1, 4096),
        low_frequency_factor=st.sampled_from([1.0, 2.0]),
        high_frequency_factor=st.sampled_from([4.0, 8.0]),
        beta_fast=st.sampled_from([32.0, 16.0]),
        beta_slow=st.sampled_from([1.0, 2.0]),
        attention_factor=st.none() | _FACTORS,
        truncate=st.booleans(),
    )


def architectures() -> st.SearchStrategy[Architecture]:
    """All of them, valid."""
    scales = st.sampled_from([1.0, 0.125, 3.3])
    caps = st.none() | st.sampled_from([30.0, 50.0])
    return st.builds(
        Architecture,
        config=configs(),
        block=st.sampled_from(BLOCKS),
        norm=st.sampled_from(["rms", "layer"]),
        norm_epsilon=st.sampled_from([1e-5, 1e-6]),
        norm_bias=st.booleans(),
        norm_offset=st.sampled_from([0.0, 1.0]),
        attention_bias=st.booleans(),
        output_bias=st.booleans(),
        qk_norm=st.booleans(),
        windows=st.lists(st.none() | st.integers(1, 3), max_size=4).map(tuple),
        attention_soft_cap=caps,
        attention_scale=st.none() | scales,
        positions=st.sampled_from(POSITIONS),
        rope_base=st.sampled_from([10000.0, 500000.0]),
        rope_fraction=st.sampled_from([1.0, 0.5]),
        rope_interleaved=st.booleans(),
        rope_scaling=st.none() | rope_scalings(),
        max_length=st.integers(1, 20),
        mlp=st.sampled_from(["gated", "plain"]),
        activation=st.sampled_from(["silu", "gelu", "gelu_tanh", "relu"]),
        mlp_bias=st.booleans(),
        router=st.sampled_from(ROUTERS),
        normalize_gates=st.booleans(),
        gate_scale=scales,
        embedding_scale=scales,
        tied=st.booleans(),
        logit_scale=scales,
        logit_soft_cap=caps,
    ).filter(_is_valid)


def _is_valid(a: Architecture) -> bool:
    is_ntk = a.rope_scaling is not None and a.rope_scaling.kind == "ntk"
    if is_ntk and a.config.head_dim * a.rope_fraction <= 2:
        return False
    return not (a.config.num_experts and a.mlp_bias)
