"""Mistral: Llama with a sliding window in every layer (Jiang et al. 2023, arXiv 2310.06825)."""

from __future__ import annotations

from typing import Any

from t5x_scale.interop.families import llama, parts
from t5x_scale.interop.families.family import Family
from t5x_scale.interop.families.fields import Fields
from t5x_scale.interop.families.rope import read_rope
from t5x_scale.models.architecture import Architecture


def read_config(fields: Fields) -> Architecture:
    """Of a MistralConfig."""
    fields.unsupported("layer_types")
    return llama.read_common(fields, windows=read_window(fields, 4096), **read_rope(fields))


def read_window(fields: Fields, default: int | None) -> tuple[int, ...]:
    """One window for all layers. Null is none, unlike a field that is absent."""
    if "sliding_window" not in fields.config:
        return () if default is None else (default,)
    window = fields.integer("sliding_window", None)
    return () if window is None else (window,)


def write_config(architecture: Architecture) -> dict[str, Any]:
    """Of a MistralConfig."""
    window, _ = parts.write_layer_types(architecture)
    return {**llama.write_common(architecture), "sliding_window": window}


FAMILY = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    rows=llama.rows,
    ignored=(parts.INVERSE_FREQUENCIES,),
)
