"""Mistral: Llama with a sliding window in every layer (Jiang et al. 2023, arXiv 2310.06825)."""

from __future__ import annotations

import logging
from typing import Any

from t5x_scale.interop.families import llama, parts
from t5x_scale.interop.families.family import Family
from t5x_scale.interop.families.fields import Fields
from t5x_scale.interop.families.rope import read_rope
from t5x_scale.models.architecture import Architecture

LOGGER = logging.getLogger("t5x_scale.interop")


def read_config(fields: Fields) -> Architecture:
    """Of a MistralConfig."""
    return llama.read_common(fields, windows=read_windows(fields, 4096), **read_rope(fields))


def read_windows(fields: Fields, default: int | None) -> tuple[int | None, ...]:
    """One window for all layers, or for those that `layer_types` lists. Null is none, unlike a field that is absent."""
    window = fields.integer("sliding_window", None if "sliding_window" in fields.config else default)
    layers = fields.layers("num_hidden_layers")
    usual = "full_attention" if window is None else "sliding_attention"
    windows = parts.read_layer_types(fields, window, [usual] * layers, layers)
    if window is not None and windows != (window,):
        LOGGER.warning(
            "%s: layers of full attention are read as layer_types lists them; transformers' class of this family "
            "gives all layers the window of %d",
            *(fields.where, window),
        )
    return windows


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
