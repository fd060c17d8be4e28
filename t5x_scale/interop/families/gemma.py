"""Gemma 1: Llama with scales stored as differences from 1, scaled embeddings and GeGLU (arXiv 2403.08295)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t5x_scale.interop.families import llama
from t5x_scale.interop.families.family import Family
from t5x_scale.interop.families.fields import ACTIVATION_NAMES, ACTIVATIONS, Fields
from t5x_scale.interop.families.rope import read_rope
from t5x_scale.models.architecture import Architecture

# The first configurations say "gelu" and mean the approximation by tanh.
GEMMA_ACTIVATIONS: Mapping[str, str] = {**ACTIVATIONS, "gelu": "gelu_tanh"}


def read_config(fields: Fields) -> Architecture:
    """Of a GemmaConfig."""
    name = "hidden_activation" if "hidden_activation" in fields else "hidden_act"
    activation = fields.choice(name, GEMMA_ACTIVATIONS, "gelu_pytorch_tanh")
    return read_gemma(fields, activation=activation)


def read_gemma(fields: Fields, **more: Any) -> Architecture:
    """What both Gemmas have."""
    # The size of a head is 256 in all of them where it is not written.
    written = Fields({"head_dim": 256, **fields.config}, fields.where)
    bias = fields.flag("attention_bias", False)
    values = {
        "norm_offset": 1.0,
        "embedding_scale": fields.integer("hidden_size") ** 0.5,
        "attention_bias": bias,
        "output_bias": bias,
        **read_rope(fields),
    }
    return llama.read_common(written, tied=True, **{**values, **more})


def write_config(architecture: Architecture) -> dict[str, Any]:
    """Of a GemmaConfig."""
    return {
        **llama.write_common(architecture),
        "hidden_activation": ACTIVATION_NAMES[architecture.activation],
        "attention_bias": architecture.attention_bias,
    }


FAMILY = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    rows=llama.rows,
)
