"""GPT-NeoX and Pythia: LayerNorm, fused queries, keys and values, partial RoPE (arXiv 2204.06745, 2304.01373)."""

from __future__ import annotations

from typing import Any

from t5x_scale.interop.families import parts
from t5x_scale.interop.families.family import Family
from t5x_scale.interop.families.fields import ACTIVATION_NAMES, ACTIVATIONS, Fields
from t5x_scale.interop.families.rope import read_rope, write_length, write_scaling
from t5x_scale.interop.mapping import Row, row
from t5x_scale.interop.operations import Split, Transpose, Unstack
from t5x_scale.models.architecture import Architecture

_ROPE = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}


def read_config(fields: Fields) -> Architecture:
    """Of a GPTNeoXConfig."""
    fields.unsupported("is_decoder", False, True)
    config = parts.read_shapes(fields, num_kv_heads=fields.integer("num_attention_heads"))
    bias = fields.flag("attention_bias", True)
    return Architecture(
        config=config,
        block="two_norm_parallel" if fields.flag("use_parallel_residual", True) else "serial",
        norm="layer",
        norm_epsilon=fields.positive("layer_norm_eps", 1e-5),
        norm_bias=True,
        attention_bias=bias,
        output_bias=bias,
        mlp="plain",
        mlp_bias=True,
        activation=fields.choice("hidden_act", ACTIVATIONS, "gelu"),
        tied=fields.flag("tie_word_embeddings", False),
        **read_rope(fields, fraction=0.25, names=_ROPE),
    )


def write_config(architecture: Architecture) -> dict[str, Any]:
    """Of a GPTNeoXConfig. Heads have no size of their own there: it is the width over their number."""
    shapes = parts.write_shapes(architecture.config)
    del shapes["head_dim"], shapes["num_key_value_heads"]
    return {
        **shapes,
        **write_length(architecture),
        "use_parallel_residual": architecture.block == "two_norm_parallel",
        "layer_norm_eps": architecture.norm_epsilon,
        "attention_bias": architecture.attention_bias,
        "hidden_act": ACTIVATION_NAMES[architecture.activation],
        "rotary_emb_base": architecture.rope_base,
        "rotary_pct": architecture.rope_fraction,
        "rope_scaling": write_scaling(architecture.rope_scaling),
        "tie_word_embeddings": architecture.tied,
    }


def rows(architecture: Architecture) -> list[Row]:
    """Of GPTNeoXForCausalLM. Each head has its query, key and value side by side: [heads * 3 * head_dim, embed]."""
    c = architecture.config
    theirs = "gpt_neox.layers.{layer}"
    attention = f"{parts.OURS}/self_attention"
    kernels = " ".join(f"{attention}/{name}/kernel" for name in ("query", "key", "value"))
    biases = kernels.replace("kernel", "bias")
    fused = Split(0, (c.num_heads, 3, c.head_dim))
    by_head = Split(0, (c.num_heads, c.head_dim))
    qkv, out = f"{theirs}.attention.query_key_value", f"{theirs}.attention.dense"
    table = [
        *parts.embedding_rows(architecture, "gpt_neox.embed_in.weight", "embed_out.weight"),
        *parts.norm_rows("decoder/final_norm", "gpt_neox.final_layer_norm", True),
        *parts.norm_rows(f"{parts.OURS}/pre_norm", f"{theirs}.input_layernorm", True),
        *parts.norm_rows(f"{parts.OURS}/pre_mlp_norm", f"{theirs}.post_attention_layernorm", True),
        row(kernels, f"{qkv}.weight", fused, Unstack(1, 3), Transpose((2, 0, 1))),
        row(f"{attention}/out/kernel", f"{out}.weight", parts.TURNED, by_head),
        *parts.linear_rows(f"{parts.OURS}/mlp/wi", f"{theirs}.mlp.dense_h_to_4h", True),
        *parts.linear_rows(f"{parts.OURS}/mlp/wo", f"{theirs}.mlp.dense_4h_to_h", True),
    ]
    if architecture.attention_bias:
        table += [row(biases, f"{qkv}.bias", fused, Unstack(1, 3)), row(f"{attention}/out/bias", f"{out}.bias")]
    return table


FAMILY = Family(
    name="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    rows=rows,
    ignored=(r"gpt_neox\.layers\.\d+\.attention\.(rotary_emb\.inv_freq|bias|masked_bias)",),
    aliases=((r"^lm_head\.", "embed_out."),),
)
