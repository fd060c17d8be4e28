"""Llama 1 to 3.x: RMSNorm, RoPE with its scalings, SwiGLU (Touvron et al. 2023; Dubey et al. 2024)."""

from __future__ import annotations

from typing import Any

from t5x_scale.core.errors import UserError
from t5x_scale.interop.families import parts
from t5x_scale.interop.families.family import Family
from t5x_scale.interop.families.fields import ACTIVATION_NAMES, ACTIVATIONS, Fields
from t5x_scale.interop.families.rope import read_rope, write_rope
from t5x_scale.interop.mapping import Row
from t5x_scale.models.architecture import Architecture


def read_config(fields: Fields) -> Architecture:
    """Of a LlamaConfig."""
    bias = fields.flag("attention_bias", False)
    return read_common(
        fields, attention_bias=bias, output_bias=bias, mlp_bias=fields.flag("mlp_bias", False), **read_rope(fields)
    )


def read_common(fields: Fields, tied: bool = False, epsilon: float = 1e-6, **more: Any) -> Architecture:
    """What all families of Llama's kind have: `tied` and `epsilon` are the family's defaults."""
    values = {
        "config": parts.read_shapes(fields),
        "norm_epsilon": fields.positive("rms_norm_eps", epsilon),
        "activation": fields.choice("hidden_act", ACTIVATIONS, "silu"),
        "tied": fields.flag("tie_word_embeddings", tied),
    }
    return Architecture(**{**values, **more})


def write_config(architecture: Architecture) -> dict[str, Any]:
    """Of a LlamaConfig."""
    check_width(architecture, "llama")
    return {
        **write_common(architecture),
        "attention_bias": architecture.attention_bias,
        "mlp_bias": architecture.mlp_bias,
    }


def write_common(architecture: Architecture) -> dict[str, Any]:
    """The inverse of `read_common`, with RoPE."""
    return {
        **parts.write_shapes(architecture.config),
        **write_rope(architecture),
        "rms_norm_eps": architecture.norm_epsilon,
        "hidden_act": ACTIVATION_NAMES[architecture.activation],
        "tie_word_embeddings": architecture.tied,
    }


def check_width(architecture: Architecture, name: str) -> None:
    """Checks what some classes ask for even where the size of a head is written.

    Raises:
      UserError: embed_dim is not a multiple of num_heads.
    """
    c = architecture.config
    if c.embed_dim % c.num_heads:
        raise UserError(
            f"{name} cannot carry embed_dim={c.embed_dim}, which is not a multiple of num_heads={c.num_heads}"
        )


def rows(architecture: Architecture) -> list[Row]:
    """Of LlamaForCausalLM, and of every family that calls its tensors so."""
    return [
        *parts.embedding_rows(architecture, "model.embed_tokens.weight", "lm_head.weight"),
        *parts.norm_rows("decoder/final_norm", "model.norm"),
        *parts.norm_rows(f"{parts.OURS}/pre_norm", f"{parts.THEIRS}.input_layernorm"),
        *parts.norm_rows(f"{parts.OURS}/pre_mlp_norm", f"{parts.THEIRS}.post_attention_layernorm"),
        *parts.attention_rows(architecture),
        *parts.gated_mlp_rows(architecture),
    ]


FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    rows=rows,
    ignored=(parts.INVERSE_FREQUENCIES,),
)
