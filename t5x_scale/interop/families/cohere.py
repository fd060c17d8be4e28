"""Cohere's Command R, and the way out for PaLM: one LayerNorm without bias before both branches, SwiGLU, RoPE.

RoPE there turns neighbours (2i, 2i + 1), ours usually halves (i, i + d/2). The two differ by a permutation of the
features of each head of queries and keys, which stands in the table unless our model turns neighbours too. Models
that are read turn halves, whatever they were before: the function is the same, and writing them again gives the same
bytes.

What of our models can be carried is what its class can say: block `parallel`, a LayerNorm with a scale only, a gated
feed-forward layer without biases, RoPE on all features of a head with any base and scaling, any number of kv heads,
any size of head, biases on all four projections of attention or on none, tied or untied tables and any logit scale.
So every PaLM is, as the paper describes it, and not with RMSNorm, windows, soft caps, scaled embeddings or experts.
"""

from __future__ import annotations

from typing import Any

from t5x_scale.interop.families import parts
from t5x_scale.interop.families.family import Family
from t5x_scale.interop.families.fields import ACTIVATION_NAMES, ACTIVATIONS, Fields
from t5x_scale.interop.families.rope import read_rope, write_rope
from t5x_scale.interop.mapping import Row
from t5x_scale.interop.operations import Permute
from t5x_scale.models.architecture import Architecture


def read_config(fields: Fields) -> Architecture:
    """Of a CohereConfig."""
    fields.unsupported("use_qk_norm", False)
    bias = fields.flag("attention_bias", False)
    return Architecture(
        config=parts.read_shapes(fields),
        block="parallel",
        norm="layer",
        norm_epsilon=fields.positive("layer_norm_eps", 1e-5),
        attention_bias=bias,
        output_bias=bias,
        activation=fields.choice("hidden_act", ACTIVATIONS, "silu"),
        logit_scale=fields.positive("logit_scale", 0.0625),
        tied=fields.flag("tie_word_embeddings", True),
        **read_rope(fields, 500000.0),
    )


def write_config(architecture: Architecture) -> dict[str, Any]:
    """Of a CohereConfig."""
    return {
        **parts.write_shapes(architecture.config),
        **write_rope(architecture),
        "layer_norm_eps": architecture.norm_epsilon,
        "attention_bias": architecture.attention_bias,
        "hidden_act": ACTIVATION_NAMES[architecture.activation],
        "logit_scale": architecture.logit_scale,
        "use_qk_norm": False,
        "tie_word_embeddings": architecture.tied,
    }


def rows(architecture: Architecture) -> list[Row]:
    """Of CohereForCausalLM."""
    size = architecture.config.head_dim
    neighbours = tuple(range(0, size, 2)) + tuple(range(1, size, 2))
    halves = () if architecture.rope_interleaved else (Permute(-1, neighbours),)
    return [
        *parts.embedding_rows(architecture, "model.embed_tokens.weight", "lm_head.weight"),
        *parts.norm_rows("decoder/final_norm", "model.norm"),
        *parts.norm_rows(f"{parts.OURS}/pre_norm", f"{parts.THEIRS}.input_layernorm"),
        *parts.attention_rows(architecture, halves),
        *parts.gated_mlp_rows(architecture),
    ]


FAMILY = Family(
    name="cohere",
    architectures=("CohereForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    rows=rows,
    ignored=(parts.INVERSE_FREQUENCIES,),
    absorbed=("rope_interleaved",),
)
