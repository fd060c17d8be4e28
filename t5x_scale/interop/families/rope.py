"""RoPE in a config.json: two ways of writing it, read both, written in the one that both read.

Older files have `rope_theta` and `rope_scaling` side by side; newer ones `rope_parameters` with everything inside.
Readers of the newer form also take the older, so that is what is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from t5x_scale.interop.families.fields import Fields
from t5x_scale.models.architecture import Architecture, RopeScalingValues

# Their names of the scalings; `default` is none. "dynamic" and "longrope" depend on the length of the input.
KINDS = {"default": "default", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}

_EITHER = ("rope_parameters", "rope_scaling")


def read_rope(
    fields: Fields, base: float = 10000.0, fraction: float | None = None, names: Mapping[str, str] = {}
) -> dict[str, Any]:
    """What an `Architecture` says of RoPE, by attribute.

    Args:
      fields: of the config.json.
      base: the family's base where none is written.
      fraction: the family's share of features that turn where none is written; None where all of them must.
      names: other names of the fields `rope_theta` and `partial_rotary_factor` beside the nested ones.

    Raises:
      UserError: a scaling that is not known, or a part of the features turns where all must.
    """
    nested = _nested(fields)
    kind = nested.choice("type" if "type" in nested and "rope_type" not in nested else "rope_type", KINDS, "default")

    def either(name: str, default: float) -> float:
        return nested.positive(name, fields.positive(names.get(name, name), default))

    share = either("partial_rotary_factor", fraction or 1.0)
    if share > 1.0:
        raise fields.error("partial_rotary_factor", share, "it is a share of a head's features, at most 1")
    if fraction is None and share != 1.0:
        raise fields.error("partial_rotary_factor", share, "supported is 1.0 in this family")
    return {
        "rope_base": either("rope_theta", base),
        "rope_fraction": share,
        "rope_scaling": None if kind == "default" else _SCALINGS[kind](nested, fields),
        "max_length": fields.integer("max_position_embeddings", 0),
    }


def _nested(fields: Fields) -> Fields:
    for name in _EITHER:
        value = fields.get(name, {})
        if not isinstance(value, Mapping):
            raise fields.error(name, value, "it must be an object")
        if any(isinstance(item, Mapping) for item in value.values()):
            raise fields.error(name, value, "one RoPE for all layers is supported")
        if value:
            return Fields(value, f"{fields.where}: {name}")
    return Fields({}, fields.where)


def _linear(nested: Fields, fields: Fields) -> RopeScalingValues:
    return RopeScalingValues("linear", nested.number("factor"))


def _llama3(nested: Fields, fields: Fields) -> RopeScalingValues:
    return RopeScalingValues(
        "llama3",
        nested.number("factor"),
        _original_length(nested, fields),
        low_frequency_factor=nested.number("low_freq_factor"),
        high_frequency_factor=nested.number("high_freq_factor"),
    )


def _yarn(nested: Fields, fields: Fields) -> RopeScalingValues:
    original = _original_length(nested, fields)
    factor = nested.number("factor", None) or fields.integer("max_position_embeddings") / original
    truncate = nested.flag("truncate", True)
    return RopeScalingValues(
        "yarn",
        factor,
        original,
        beta_fast=nested.number("beta_fast", 32.0),
        beta_slow=nested.number("beta_slow", 1.0),
        attention_factor=_attention_factor(nested, factor),
        truncate=truncate,
    )


_SCALINGS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}


def _original_length(nested: Fields, fields: Fields) -> int:
    for place in (fields, nested):
        if "original_max_position_embeddings" in place:
            return place.integer("original_max_position_embeddings")
    return fields.integer("max_position_embeddings")


def _attention_factor(nested: Fields, factor: float) -> float | None:
    """The factor that is written, or DeepSeek's form of it, a quotient of two of YaRN's (`mscale`)."""
    written = nested.number("attention_factor", None)
    one, all_dims = nested.number("mscale", None), nested.number("mscale_all_dim", None)
    if written is not None or not one or not all_dims:
        return written
    if factor <= 1:
        return 1.0
    return (0.1 * one * math.log(factor) + 1.0) / (0.1 * all_dims * math.log(factor) + 1.0)


def write_rope(architecture: Architecture) -> dict[str, Any]:
    """The fields of a config.json, for an architecture whose RoPE turns all features of a head."""
    return {
        "rope_theta": architecture.rope_base,
        "rope_scaling": write_scaling(architecture.rope_scaling),
        **write_length(architecture),
    }


def write_length(architecture: Architecture) -> dict[str, int]:
    """The longest context, if it is on record."""
    return {"max_position_embeddings": architecture.max_length} if architecture.max_length else {}


def write_scaling(scaling: RopeScalingValues | None) -> dict[str, Any] | None:
    """The field `rope_scaling`."""
    if scaling is None:
        return None
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        fields["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        fields["low_freq_factor"] = scaling.low_frequency_factor
        fields["high_freq_factor"] = scaling.high_frequency_factor
    if scaling.kind == "yarn":
        fields |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        if scaling.attention_factor is not None:
            fields["attention_factor"] = scaling.attention_factor
    return fields
