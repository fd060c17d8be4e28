"""What is on record of a model that is to be continued: its shape and the tokens it has seen; it is not loaded."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.core.patience import read_patiently
from t5x_scale.models.accounting import Anatomy
from t5x_scale.models.architecture import Architecture
from t5x_scale.planner import gin_models
from t5x_scale.planner.amounts import Amount, parse_amount, parse_whole
from t5x_scale.planner.meshes import MeshPlan
from t5x_scale.planner.shapes import USUAL_FAMILY, Shape, make_shape, vocabulary_unit

_USUAL_VOCABULARY = 32000
# Beyond, sizes are mistyped, or a stranger's joke that leaves the range of a float.
_MOST_PARAMS = 10**15
_SAID = "--continue_from says the model"
_CONTINUED = "a continued run is planned from --domain_tokens and --general_tokens"
_PLACES = {
    "params": _SAID,
    "vocab_size": _SAID,
    "family": _SAID,
    "flops": _CONTINUED,
    "tokens": _CONTINUED,
    "unique_tokens": _CONTINUED,
    "law": _CONTINUED,
    "tokens_seen": "it belongs to --continue_from or --domain_tokens",
    "general_tokens": "it belongs to --domain_tokens",
    "shift": "it belongs to --domain_tokens",
}
# Norms of the size of the residual stream in a layer, by kind of block.
_NORMS = {"serial": 2, "parallel": 1, "two_norm_parallel": 2, "sandwich": 4}


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

    A gin file of a model is its shape alone.

    Raises:
      UserError: there is nothing that says the shape of a model, or it cannot be reached.
    """
    return read_patiently(lambda: _read_model(path), f"--continue_from: {path}")


def _read_model(path: str) -> KnownModel:
    if path.endswith(".gin") and (file := gin_models.find_file(path)) is not None:
        return KnownModel("", gin_models.read_shape(file), None, str(file))
    directory = files.to_path(path)
    if not files.exists(directory):
        raise UserError(f"--continue_from: there is no {path}")
    # A step of a run lies two levels below the run's files.
    for place in (directory, directory.parent, directory.parent.parent):
        for name in ("config.gin", "model.gin"):
            if files.exists(place / name):
                return KnownModel(path, gin_models.read_shape(place / name), _tokens(place), str(place / name))
    if files.exists(directory / "config.json"):
        return KnownModel(path, _from_json(directory / "config.json"), None, "")
    raise UserError(
        f"--continue_from: {path} holds neither config.gin, model.gin nor config.json; say --params and --tokens_seen"
    )


def find_base(
    path: str | None,
    params: Amount | None,
    tokens_seen: Amount | None,
    vocab_size: Amount | None,
    family: str | None = None,
) -> KnownModel:
    """The model of `--continue_from`, or one of about `--params`.

    Raises:
      UserError: neither is given, or both are.
    """
    seen = None if tokens_seen is None else parse_amount("tokens_seen", tokens_seen, "1.4T")
    if path is not None:
        check_absent(params=params, vocab_size=vocab_size, family=family)
        model = read_model(path)
        return model if seen is None else dataclasses.replace(model, tokens=seen)
    if params is None:
        raise UserError("which model is continued? Give --continue_from=PATH, or --params and --tokens_seen")
    number = parse_amount("params", params)
    unit = vocabulary_unit(number, MeshPlan())
    usual = _USUAL_VOCABULARY if number > 1e8 else 2048
    rows = math.ceil((usual if vocab_size is None else parse_whole("vocab_size", vocab_size)) / unit) * unit
    return KnownModel("", make_shape(number, rows, family or USUAL_FAMILY), seen, "")


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


def _from_json(path: files.Path) -> Shape:
    """Of a Hugging Face configuration, as importing the model would understand it."""
    # A tenth of the time that other plans take to answer.
    from t5x_scale.interop.families.finding import find_family

    record = files.read_json(path)
    try:
        if not isinstance(record, dict):
            raise UserError("config.json is no configuration of a model; expected an object")
        architecture = find_family(record).to_architecture(record)
    except UserError as error:
        raise UserError(
            f"--continue_from: {path.parent}: {error}; or say --params and --tokens_seen instead"
        ) from error
    family = "palm" if architecture.block == "parallel" else "llama"
    shape = Shape(family, architecture.config, _anatomy(architecture))
    if shape.count.total > _MOST_PARAMS:
        raise UserError(f"--continue_from: {path.parent}: config.json is of a model of more than {_MOST_PARAMS:.0e} "
                        "parameters, which nobody has trained")  # fmt: skip
    return shape


def _anatomy(architecture: Architecture) -> Anatomy:
    return Anatomy(
        gated_mlp=architecture.mlp == "gated",
        tied_head=architecture.tied,
        attention_bias=architecture.attention_bias,
        output_bias=architecture.output_bias,
        mlp_bias=architecture.mlp_bias,
        norm_bias=architecture.norm == "layer" and architecture.norm_bias,
        norms_per_block=_NORMS[architecture.block],
        qk_norm=architecture.qk_norm,
        learned_positions=architecture.max_length if architecture.positions == "learned" else 0,
    )


def _tokens(run: files.Path) -> float | None:
    """Of the report of a run."""
    summary = run / "report" / "summary.json"
    if not files.exists(summary):
        return None
    try:
        return float(json.loads(files.read_bounded(summary)).get("tokens") or 0) or None
    except (ValueError, AttributeError, OSError):
        return None
