"""Mixtral: Mistral whose tokens choose among experts (Jiang et al. 2024, arXiv 2401.04088)."""

from __future__ import annotations

from typing import Any

from t5x_scale.interop.families import llama, parts
from t5x_scale.interop.families.family import Family
from t5x_scale.interop.families.fields import Fields
from t5x_scale.interop.families.mistral import read_windows
from t5x_scale.interop.families.rope import read_rope
from t5x_scale.interop.mapping import Row, row
from t5x_scale.models.architecture import Architecture


def read_config(fields: Fields) -> Architecture:
    """Of a MixtralConfig."""
    experts, chosen = fields.integer("num_local_experts", 8), fields.integer("num_experts_per_tok", 2)
    if chosen > experts:
        raise fields.error("num_experts_per_tok", chosen, f"it must be num_local_experts={experts} or less")
    config = parts.read_shapes(fields, num_experts=experts, num_experts_per_token=chosen)
    windows = read_windows(fields, None)
    return llama.read_common(fields, epsilon=1e-5, config=config, windows=windows, **read_rope(fields, 1e6))


def write_config(architecture: Architecture) -> dict[str, Any]:
    """Of a MixtralConfig."""
    window, _ = parts.write_layer_types(architecture)
    c = architecture.config
    experts = {"num_local_experts": c.num_experts, "num_experts_per_tok": c.num_experts_per_token}
    return {**llama.write_common(architecture), "sliding_window": window, **(experts if c.num_experts else {})}


def rows(architecture: Architecture) -> list[Row]:
    """Of MixtralForCausalLM, as it is stored: a tensor each expert."""
    theirs = f"{parts.THEIRS}.block_sparse_moe"
    names = (("wi_0", "w1"), ("wi_1", "w3"), ("wo", "w2"))
    return [
        *parts.embedding_rows(architecture, "model.embed_tokens.weight", "lm_head.weight"),
        *parts.norm_rows("decoder/final_norm", "model.norm"),
        *parts.norm_rows(f"{parts.OURS}/pre_norm", f"{parts.THEIRS}.input_layernorm"),
        *parts.norm_rows(f"{parts.OURS}/pre_mlp_norm", f"{parts.THEIRS}.post_attention_layernorm"),
        *parts.attention_rows(architecture),
        row(f"{parts.OURS}/mlp/router/kernel", f"{theirs}.gate.weight", parts.TURNED),
        *(
            row(f"{parts.OURS}/mlp/experts/{a}/kernel", f"{theirs}.experts.{{expert}}.{b}.weight", parts.TURNED)
            for a, b in names
        ),
    ]


FAMILY = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    rows=rows,
    ignored=(parts.INVERSE_FREQUENCIES,),
)
