"""Gemma 2: Gemma with norms on both sides of each branch, soft caps and alternating windows (arXiv 2408.00118)."""

from __future__ import annotations

from typing import Any

from t5x_scale.core.errors import UserError
from t5x_scale.interop.families import llama, parts
from t5x_scale.interop.families.family import Family
from t5x_scale.interop.families.fields import ACTIVATION_NAMES, ACTIVATIONS, Fields
from t5x_scale.interop.families.gemma import read_gemma
from t5x_scale.interop.mapping import Row
from t5x_scale.models.architecture import Architecture

# The class's window where no layer has one and none is on record.
_WINDOW = 4096


def read_config(fields: Fields) -> Architecture:
    """Of a Gemma2Config."""
    layers = fields.layers("num_hidden_layers")
    alternating = [("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)]
    window = fields.integer("sliding_window", None if "sliding_window" in fields.config else _WINDOW)
    return read_gemma(
        fields,
        block="sandwich",
        activation=fields.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        windows=parts.read_layer_types(fields, window, alternating, layers),
        attention_scale=fields.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_soft_cap=_cap(fields, "attn_logit_softcapping", 50.0),
        logit_soft_cap=_cap(fields, "final_logit_softcapping", 30.0),
    )


def _cap(fields: Fields, name: str, default: float) -> float | None:
    """Null is no cap, unlike a field that is absent."""
    return fields.number(name, None if name in fields.config else default)


def write_config(architecture: Architecture) -> dict[str, Any]:
    """Of a Gemma2Config."""
    llama.check_width(architecture, "gemma2")
    window, types = parts.write_layer_types(architecture)
    return {
        **llama.write_common(architecture),
        "hidden_activation": ACTIVATION_NAMES[architecture.activation],
        "attention_bias": architecture.attention_bias,
        "query_pre_attn_scalar": _scalar(architecture),
        "sliding_window": window or _WINDOW,
        "layer_types": types,
        "attn_logit_softcapping": architecture.attention_soft_cap,
        "final_logit_softcapping": architecture.logit_soft_cap,
    }


def _scalar(architecture: Architecture) -> int:
    """The integer whose inverse root multiplies the attention logits."""
    scale = architecture.attention_scale
    if scale is None:
        return architecture.config.head_dim
    scalar = max(1, round(scale**-2))
    if scalar**-0.5 != scale:
        raise UserError(f"gemma2 cannot carry attention_scale={scale}, which is not 1/sqrt of an integer")
    return scalar


def rows(architecture: Architecture) -> list[Row]:
    """Of Gemma2ForCausalLM."""
    norms = {
        "pre_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "pre_mlp_norm": "pre_feedforward_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    }
    return [
        *parts.embedding_rows(architecture, "model.embed_tokens.weight", "lm_head.weight"),
        *parts.norm_rows("decoder/final_norm", "model.norm"),
        *(one for a, b in norms.items() for one in parts.norm_rows(f"{parts.OURS}/{a}", f"{parts.THEIRS}.{b}")),
        *parts.attention_rows(architecture),
        *parts.gated_mlp_rows(architecture),
    ]


FAMILY = Family(
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    rows=rows,
)
