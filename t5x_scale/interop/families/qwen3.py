"""Qwen 3, dense: Llama with norms over the features of each head of queries and keys."""

from __future__ import annotations

from typing import Any

from t5x_scale.interop.families import llama
from t5x_scale.interop.families.family import Family
from t5x_scale.interop.families.fields import Fields
from t5x_scale.interop.families.qwen2 import read_windows, write_windows
from t5x_scale.interop.families.rope import read_rope
from t5x_scale.models.architecture import Architecture


def read_config(fields: Fields) -> Architecture:
    """Of a Qwen3Config."""
    bias = fields.flag("attention_bias", False)
    # The one family whose size of a head does not follow from its width where it is not written.
    written = Fields({"head_dim": 128, **fields.config}, fields.where)
    return llama.read_common(
        written, attention_bias=bias, output_bias=bias, qk_norm=True, windows=read_windows(fields), **read_rope(fields)
    )


def write_config(architecture: Architecture) -> dict[str, Any]:
    """Of a Qwen3Config."""
    return {
        **llama.write_common(architecture),
        **write_windows(architecture),
        "attention_bias": architecture.attention_bias,
    }


FAMILY = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    rows=llama.rows,
)
