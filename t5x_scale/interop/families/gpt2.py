"""GPT-2: learned positions, LayerNorm, one fused matrix for queries, keys and values (Radford et al. 2019)."""

from __future__ import annotations

from typing import Any

from t5x_scale.interop.families import parts
from t5x_scale.interop.families.family import Family
from t5x_scale.interop.families.fields import ACTIVATION_NAMES, ACTIVATIONS, DTYPES, Fields
from t5x_scale.interop.mapping import Row, row
from t5x_scale.interop.operations import Split, Unstack
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.config import ModelConfig


def read_config(fields: Fields) -> Architecture:
    """Of a GPT2Config."""
    fields.unsupported("scale_attn_by_inverse_layer_idx", False)
    fields.unsupported("add_cross_attention", False)
    return Architecture(
        config=_read_shapes(fields),
        norm="layer",
        norm_epsilon=fields.positive("layer_norm_epsilon", 1e-5),
        norm_bias=True,
        attention_bias=True,
        output_bias=True,
        attention_scale=None if fields.flag("scale_attn_weights", True) else 1.0,
        positions="learned",
        max_length=fields.integer("n_positions", 1024),
        mlp="plain",
        mlp_bias=True,
        activation=fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
        tied=fields.flag("tie_word_embeddings", True),
    )


def _read_shapes(fields: Fields) -> ModelConfig:
    embed_dim, heads = fields.integer("n_embd"), fields.integer("n_head")
    if embed_dim % heads:
        raise fields.error("n_embd", embed_dim, f"it must be a multiple of n_head={heads}")
    dtype = fields.choice("dtype" if "dtype" in fields else "torch_dtype", DTYPES, "float32")
    return ModelConfig(
        num_layers=fields.layers("n_layer"),
        embed_dim=embed_dim,
        mlp_dim=fields.integer("n_inner", 4 * embed_dim),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=embed_dim // heads,
        vocab_size=fields.integer("vocab_size"),
        dtype=dtype,
        param_dtype=dtype,
    )


def write_config(architecture: Architecture) -> dict[str, Any]:
    """Of a GPT2Config."""
    c = architecture.config
    activation = ACTIVATION_NAMES[architecture.activation]
    return {
        "n_embd": c.embed_dim,
        "n_head": c.num_heads,
        "n_layer": c.num_layers,
        "n_inner": c.mlp_dim,
        **({"n_positions": architecture.max_length} if architecture.max_length else {}),
        "vocab_size": c.vocab_size,
        "layer_norm_epsilon": architecture.norm_epsilon,
        "activation_function": "gelu_new" if architecture.activation == "gelu_tanh" else activation,
        "scale_attn_weights": architecture.attention_scale is None,
        "tie_word_embeddings": architecture.tied,
    }


def rows(architecture: Architecture) -> list[Row]:
    """Of GPT2LMHeadModel, whose linear layers are [in, out] like ours, queries, keys and values one after another."""
    c = architecture.config
    theirs = "transformer.h.{layer}"
    attention = f"{parts.OURS}/self_attention"
    kernels = " ".join(f"{attention}/{name}/kernel" for name in ("query", "key", "value"))
    heads = (c.num_heads, c.head_dim)
    qkv, out = f"{theirs}.attn.c_attn", f"{theirs}.attn.c_proj"
    return [
        *parts.embedding_rows(architecture, "transformer.wte.weight", "lm_head.weight"),
        row("position_embedder/embedding", "transformer.wpe.weight"),
        *parts.norm_rows("decoder/final_norm", "transformer.ln_f", True),
        *parts.norm_rows(f"{parts.OURS}/pre_norm", f"{theirs}.ln_1", True),
        *parts.norm_rows(f"{parts.OURS}/pre_mlp_norm", f"{theirs}.ln_2", True),
        row(kernels, f"{qkv}.weight", Split(1, (3, *heads)), Unstack(1, 3)),
        row(kernels.replace("kernel", "bias"), f"{qkv}.bias", Split(0, (3, *heads)), Unstack(0, 3)),
        row(f"{attention}/out/kernel", f"{out}.weight", Split(0, heads)),
        row(f"{attention}/out/bias", f"{out}.bias"),
        row(f"{parts.OURS}/mlp/wi/kernel", f"{theirs}.mlp.c_fc.weight"),
        row(f"{parts.OURS}/mlp/wi/bias", f"{theirs}.mlp.c_fc.bias"),
        row(f"{parts.OURS}/mlp/wo/kernel", f"{theirs}.mlp.c_proj.weight"),
        row(f"{parts.OURS}/mlp/wo/bias", f"{theirs}.mlp.c_proj.bias"),
    ]


FAMILY = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel",),
    read_config=read_config,
    write_config=write_config,
    rows=rows,
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
    aliases=((r"^(wte|wpe|ln_f|h)\.", r"transformer.\1."),),
)
