"""The shape of a model by its gin file, read as text: sizes and what parameters its parts have, without gin or jax."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.models.accounting import Anatomy, find_anatomy
from t5x_scale.models.config import ModelConfig
from t5x_scale.planner.shapes import Shape

_SIZES = ("num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
_EXPERTS = ("num_experts", "num_experts_per_token")
# Where files that are included lie: at the working directory, the checkout that holds the package, the installed data.
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_PLACES = (pathlib.Path(), _PACKAGE.parent, _PACKAGE)
_INCLUDE = re.compile(r"include\s+[\"']([^\"']+)[\"']\s*")
_HEADER = re.compile(r"([\w./]+):\s*")
_SETTING = re.compile(r"(\s*)([\w./]+)\s*=\s*(.+?)\s*")
_DEEPEST = 8
_NORMS = {"ParallelBlock": 1, "TwoNormParallelBlock": 2, "SerialBlock": 2, "SandwichBlock": 4}

Settings = dict[str, str]


def find_file(path: str) -> files.Path | None:
    """A gin file by its path, or by that below a place where gin files lie; None where there is none."""
    return next((place for place in (files.to_path(at / path) for at in _PLACES) if files.is_file(place)), None)


def read_shape(path: files.Path) -> Shape:
    """The shape that a file, with what it includes, gives a model.

    Raises:
      UserError: it cannot be read, includes what there is not, or does not say all sizes.
    """
    settings: Settings = {}
    for name, value in _settings(path, 0):
        settings[name] = value
    sizes = {}
    for name in (*_SIZES, *_EXPERTS):
        value = _value(settings, f"ModelConfig.{name}")
        if value.isdigit():
            sizes[name] = int(value)
    missing = [name for name in _SIZES if name not in sizes]
    if missing:
        raise UserError(f"--continue_from: {path} does not set {', '.join(missing)}")
    block = _value(settings, "Decoder.block")
    anatomy = _anatomy(settings, block) if block in _NORMS else find_anatomy("llama")
    return Shape("palm" if block == "ParallelBlock" else "llama", ModelConfig(**sizes), anatomy)


def _settings(path: files.Path, depth: int) -> Iterator[tuple[str, str]]:
    """`Class.name` (or a macro's name) and value of each line, included files in their places."""
    try:
        text = files.read_bounded(path).decode(errors="replace")
    except OSError as error:
        raise UserError(f"--continue_from: cannot read {path}: {error.strerror or error}") from error
    header = ""
    for line in text.splitlines():
        line = line.split("#")[0].rstrip()
        if include := _INCLUDE.fullmatch(line):
            file = find_file(include[1])
            if file is None or depth >= _DEEPEST:
                raise UserError(f"--continue_from: {path} includes {include[1]}, which is not there")
            yield from _settings(file, depth + 1)
        elif match := _HEADER.fullmatch(line):
            header = match[1]
        elif match := _SETTING.fullmatch(line):
            name = f"{header}.{match[2]}" if match[1] and header else match[2]
            yield ".".join(re.split(r"[./]", name)[-2:]), match[3]


def _value(settings: Settings, name: str) -> str:
    """What is bound to a parameter; of a configurable the name of its class, "" where nothing is."""
    value = settings.get(name, "")
    for _ in range(_DEEPEST):
        if not value.startswith("%"):
            break
        value = settings.get(value[1:], "")
    return re.split(r"[./]", value.removesuffix("()"))[-1] if value.startswith("@") else value.strip("\"'")


def _anatomy(settings: Settings, block: str) -> Anatomy:
    def is_set(name: str) -> bool:
        return _value(settings, name) not in ("", "None", "False")

    mlp, norm = _value(settings, f"{block}.mlp"), _value(settings, f"{block}.norm")
    has_table = _value(settings, "Decoder.position_embedder") == "LearnedPositions"
    rows = _value(settings, "LearnedPositions.max_length") if has_table else ""
    return Anatomy(
        gated_mlp=mlp == "GatedMlp" or is_set(f"{mlp}.gated"),
        tied_head=not is_set("Decoder.head"),
        attention_bias=is_set("Attention.use_bias"),
        output_bias=is_set("Attention.use_output_bias"),
        mlp_bias=is_set(f"{mlp}.use_bias"),
        norm_bias=is_set(f"{norm}.use_bias"),
        norms_per_block=_NORMS[block],
        qk_norm=is_set("Attention.query_norm"),
        learned_positions=int(rows) if rows.isdigit() else 0,
        relative_positions=_value(settings, "Attention.positions") == "RelativePositions",
    )
