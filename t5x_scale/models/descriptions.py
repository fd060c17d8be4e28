"""From what is on record of a model back to its architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.layers.attention import Attention
from t5x_scale.layers.moe import MoeMlp
from t5x_scale.models.architecture import ROPE_SCALING_FIELDS, Architecture, RopeScalingValues
from t5x_scale.models.composition import BLOCKS, MLPS, NORMS, POSITIONS, SCALINGS, to_model
from t5x_scale.models.config import ModelConfig

# What `DecoderModel.architecture()` gives: module path -> class and settings.
Description = Mapping[str, Mapping[str, Any]]

_BLOCK = "decoder/layers"
_ATTENTION = f"{_BLOCK}/self_attention"
_ROPE = f"{_ATTENTION}/positions"
_NORM = "decoder/final_norm"
_MLP = f"{_BLOCK}/mlp"

# What may differ from a model made from the architecture: settings that say the same in several ways, and those that
# matter to training only.
_FREE = {
    ("model", "logit_scale"),
    ("decoder_model", "windows"),
    ("decoder", "windows"),
    (_ATTENTION, "window"),
    (_MLP, "balance_loss"),
    (_MLP, "router_z_loss"),
}


def from_description(description: Description) -> Architecture:
    """The architecture that a description says, in its normal form.

    It is read from the modules that decide it, then a model made from it is described in its turn: whatever the
    description says beyond that is what an `Architecture` cannot say. Settings that an older version did not put on
    record are taken at their default.

    Args:
      description: `DecoderModel.architecture()`, or what became of it as JSON.

    Raises:
      UserError: names the module and the setting that an architecture cannot say.
    """
    architecture = _read(description).normalized()
    expected = to_model(architecture).architecture()
    for path, module in description.items():
        if path not in expected:
            raise UserError(f"an Architecture cannot say the module '{path}' ({module.get('class')})")
        for setting, value, other in _differences(path, module, expected[path]):
            raise UserError(f"an Architecture cannot say {setting} = {value!r} of '{path}'; it would be {other!r}")
    for path in expected:
        if path not in description:
            raise UserError(f"an Architecture cannot leave out the module '{path}' ({expected[path]['class']})")
    return architecture


def _differences(path: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for setting, value in found.items():
        if (path, setting) in _FREE:
            continue
        other = expected.get(setting)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from _differences(f"{path}/{setting}", value, other)
        elif setting not in expected or value != other:
            yield setting, value, other


def _read(description: Description) -> Architecture:
    model, attention = _module(description, "model"), _module(description, _ATTENTION, {"": Attention})
    norm = _module(description, _NORM, NORMS)
    config = _config(model)
    tied = "logits" not in description
    logit_scale = model.get("logit_scale")
    if logit_scale is None:
        logit_scale = config.embed_dim**-0.5 if tied else 1.0
    return Architecture(
        config=config,
        block=_key(BLOCKS, description, _BLOCK),
        norm=_key(NORMS, description, _NORM),
        norm_epsilon=norm["epsilon"],
        norm_bias=norm.get("use_bias", False),
        norm_offset=norm.get("offset", 0.0),
        attention_bias=attention["use_bias"],
        output_bias=attention["use_output_bias"],
        qk_norm=f"{_ATTENTION}/query_norm" in description,
        windows=_windows(description),
        attention_soft_cap=attention.get("soft_cap"),
        attention_scale=attention.get("logit_scale"),
        **_positions(description),
        **_feed_forward(description),
        embedding_scale=_module(description, "token_embedder").get("scale", 1.0),
        tied=tied,
        logit_scale=logit_scale,
        logit_soft_cap=model.get("logit_soft_cap"),
    )


def _feed_forward(description: Description) -> dict[str, Any]:
    mlp = _module(description, _MLP, {**MLPS, "experts": MoeMlp})
    if mlp["class"] != MoeMlp.__name__:
        return {"mlp": _key(MLPS, description, _MLP), "activation": mlp["activation"], "mlp_bias": mlp["use_bias"]}
    same = {name: mlp[name] for name in ("activation", "router", "normalize_gates", "gate_scale")}
    return {"mlp": "gated" if mlp["gated"] else "plain", **same}


def _windows(description: Description) -> tuple[int | None, ...]:
    every, cycle = description[_ATTENTION].get("window"), description["decoder_model"].get("windows")
    if every is not None and cycle:
        raise UserError(
            f"an Architecture cannot say window = {every} of '{_ATTENTION}' beside windows = {cycle} of the decoder"
        )
    return tuple(cycle or (() if every is None else (every,)))


def _positions(description: Description) -> dict[str, Any]:
    table = description.get("position_embedder")
    kind = _key(POSITIONS, description, _ROPE)
    if kind == "learned":
        return {"positions": "none"} if table is None else {"positions": kind, "max_length": table["max_length"]}
    if kind != "rope":
        return {"positions": kind}
    rope = description[_ROPE]
    return {
        "positions": kind,
        "rope_base": rope["base"],
        "rope_fraction": rope["fraction"],
        "rope_interleaved": rope["interleaved"],
        "rope_scaling": _scaling(rope.get("scaling")),
    }


def _scaling(scaling: Mapping[str, Any] | None) -> RopeScalingValues | None:
    if scaling is None:
        return None
    kind = _key(SCALINGS, {f"{_ROPE}/scaling": scaling}, f"{_ROPE}/scaling")
    fields = {name: scaling[name] for name in ROPE_SCALING_FIELDS[kind]}
    return RopeScalingValues(kind, scaling["factor"], **fields)


def _config(model: Mapping[str, Any]) -> ModelConfig:
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    return ModelConfig(**{name: value for name, value in model["config"].items() if name in known})


def _module(description: Description, path: str, classes: Mapping[str, type] | None = None) -> Mapping[str, Any]:
    """A module of the description, which must be of one of `classes` if they are given."""
    if path not in description:
        raise UserError(f"an Architecture needs the module '{path}', which the description does not have")
    if classes is not None:
        _key(classes, description, path)
    return description[path]


def _key(classes: Mapping[str, type], description: Description, path: str) -> str:
    """The first name that the class of a module has among `classes`."""
    found = _module(description, path)["class"]
    names = {kind.__name__: name for name, kind in reversed(classes.items())}
    check_choice(f"the class of '{path}'", found, tuple(names))
    return names[found]
