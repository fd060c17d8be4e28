"""Qwen 2 and 2.5, dense: Llama with biases on queries, keys and values, and windows in the upper layers."""

from __future__ import annotations

from typing import Any

from t5x_scale.interop.families import llama, parts
from t5x_scale.interop.families.family import Family
from t5x_scale.interop.families.fields import Fields
from t5x_scale.interop.families.rope import read_rope
from t5x_scale.models.architecture import Architecture


def read_config(fields: Fields) -> Architecture:
    """Of a Qwen2Config."""
    return llama.read_common(fields, attention_bias=True, windows=read_windows(fields), **read_rope(fields))


def read_windows(fields: Fields) -> tuple[int | None, ...]:
    """Windows of the layers from `max_window_layers` on, or as listed, and none unless they are switched on."""
    layers = fields.layers("num_hidden_layers")
    on = fields.flag("use_sliding_window", False)
    window = fields.integer("sliding_window", 4096) if on else None
    first = fields.get("max_window_layers", 28) if on else layers
    default = ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    return parts.read_layer_types(fields, window, default, layers)


def write_windows(architecture: Architecture) -> dict[str, Any]:
    """The inverse. `max_window_layers` says the same to readers that know no `layer_types`, where it can."""
    window, types = parts.write_layer_types(architecture)
    first = types.index("sliding_attention") if window else len(types)
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": first,
        "layer_types": types,
    }


def write_config(architecture: Architecture) -> dict[str, Any]:
    """Of a Qwen2Config."""
    return {**llama.write_common(architecture), **write_windows(architecture)}


FAMILY = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    rows=llama.rows,
    ignored=(parts.INVERSE_FREQUENCIES,),
)
