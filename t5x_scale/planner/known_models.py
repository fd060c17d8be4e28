"""What is on record of a model that is to be continued: its shape and the tokens it has seen; it is not loaded."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.models.config import ModelConfig
from t5x_scale.planner.amounts import Amount, parse_amount
from t5x_scale.planner.meshes import MeshPlan
from t5x_scale.planner.shapes import Shape, make_shape, vocabulary_unit

_SIZES = ("num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
_EXPERTS = ("num_experts", "num_experts_per_token")
# Of a Hugging Face configuration.
_THEIRS = {
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "mlp_dim": "intermediate_size",
    "num_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
}
_USUAL_VOCABULARY = 32000
_CONTINUED = "a continued run is planned from --domain_tokens and --general_tokens"
_PLACES = {
    "params": "--continue_from says the model",
    "flops": _CONTINUED,
    "tokens": _CONTINUED,
    "unique_tokens": _CONTINUED,
    "tokens_seen": "it belongs to --continue_from or --domain_tokens",
    "general_tokens": "it belongs to --domain_tokens",
}
_SETTING = re.compile(rf"^\s*(?:[\w./]*ModelConfig\.)?({'|'.join((*_SIZES, *_EXPERTS))})\s*=\s*(\d+)\s*$", re.MULTILINE)
# What tells the block of PaLM, which has one table, from the others.
_PARALLEL = "ParallelBlock"


@dataclasses.dataclass(frozen=True)
class KnownModel:
    """A model that there is.

    Attributes:
      path: where.
      shape: of it.
      tokens: that it was trained on; None where nothing says so.
      gin: its gin file, for training it on; "" where there is none yet.
    """

    path: str
    shape: Shape
    tokens: float | None
    gin: str


def read_model(path: str) -> KnownModel:
    """What a run of ours, a converted checkpoint, a Hugging Face directory or a step of a run says of itself.

    Raises:
      UserError: there is nothing that says the shape of a model.
    """
    directory = files.to_path(path)
    if not directory.exists():
        raise UserError(f"--continue_from: there is no {path}")
    # A step of a run lies two levels below the run's files.
    for place in (directory, directory.parent, directory.parent.parent):
        for name in ("config.gin", "model.gin"):
            if (place / name).exists():
                shape = _from_gin(files.read_bounded(place / name).decode(errors="replace"), f"{place / name}")
                return KnownModel(path, shape, _tokens(place), str(place / name))
    if (directory / "config.json").exists():
        return KnownModel(path, _from_json(directory / "config.json"), None, "")
    raise UserError(
        f"--continue_from: {path} holds neither config.gin, model.gin nor config.json; say --params and --tokens_seen"
    )


def find_base(
    path: str | None, params: Amount | None, tokens_seen: Amount | None, vocab_size: int | None, family: str
) -> KnownModel:
    """The model of `--continue_from`, or one of about `--params`.

    Raises:
      UserError: neither is given, or both are.
    """
    seen = None if tokens_seen is None else parse_amount("tokens_seen", tokens_seen, "1.4T")
    if path is not None:
        check_absent(params=params)
        model = read_model(path)
        return model if seen is None else dataclasses.replace(model, tokens=seen)
    if params is None:
        raise UserError("which model is continued? Give --continue_from=PATH, or --params and --tokens_seen")
    number = parse_amount("params", params)
    unit = vocabulary_unit(number, MeshPlan())
    rows = math.ceil((vocab_size or (_USUAL_VOCABULARY if number > 1e8 else 2048)) / unit) * unit
    return KnownModel("", make_shape(number, rows, family), seen, "")


def parse_amounts(domain_tokens: Amount | None, general_tokens: Amount | None) -> tuple[float, float | None]:
    """Tokens of the domain and of general text.

    Raises:
      UserError: the domain's are missing, or one is no positive number.
    """
    if domain_tokens is None:
        raise UserError("how much is there of the new data? Give --domain_tokens, such as 10e9")
    general = None if general_tokens is None else parse_amount("general_tokens", general_tokens, "10e9")
    return parse_amount("domain_tokens", domain_tokens, "10e9"), general


def check_absent(**values: Any) -> None:
    """Checks that none of these flags is given.

    Raises:
      UserError: naming one that says nothing here.
    """
    for name, value in values.items():
        if value is not None:
            raise UserError(f"--{name} has no meaning in this plan: " + _PLACES[name])


def _from_gin(text: str, where: str) -> Shape:
    found = {name: int(value) for name, value in _SETTING.findall(text)}
    missing = [name for name in _SIZES if name not in found]
    if missing:
        raise UserError(f"--continue_from: {where} does not set {', '.join(missing)}")
    is_parallel = f"block = @blocks.{_PARALLEL}" in text or "models/palm/" in text
    return Shape("palm" if is_parallel else "llama", ModelConfig(**found))


def _from_json(path: files.Path) -> Shape:
    try:
        record: dict[str, Any] = json.loads(files.read_bounded(path))
        sizes = {ours: int(record[theirs]) for ours, theirs in _THEIRS.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--continue_from: {path} lacks {error}; say --params and --tokens_seen instead") from error
    heads = sizes["num_heads"]
    return Shape(
        "llama",
        ModelConfig(
            **sizes,
            num_kv_heads=int(record.get("num_key_value_heads") or heads),
            head_dim=int(record.get("head_dim") or sizes["embed_dim"] // heads),
        ),
    )


def _tokens(run: files.Path) -> float | None:
    """Of the report of a run."""
    summary = run / "report" / "summary.json"
    if not summary.exists():
        return None
    try:
        return float(json.loads(files.read_bounded(summary)).get("tokens") or 0) or None
    except (ValueError, AttributeError, OSError):
        return None
