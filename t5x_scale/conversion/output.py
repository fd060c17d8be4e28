"""Checkpoints of ours, written from `Weights` block by block: whole or absent.

    OUTPUT/
      checkpoints/0/    the tensors, as any checkpoint of a run; verified whenever they are read
      tokenizer/        the files of its tokenizer, which VOCABULARY can name
      model.gin         the model, to be trained, evaluated and asked like a hand-written file
      origin.txt        where every tensor came from
      conversion.json   the recipe and the versions

On a disk all of it is written under another name beside OUTPUT and renamed at the end; on an object store the
checkpoint's commit marker comes last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from t5x_scale import __version__
from t5x_scale.checkpoint.stream_writer import write_stream
from t5x_scale.conversion.sources import TOKENIZER
from t5x_scale.core import files
from t5x_scale.core.environment import PACKAGES, package_version
from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.leaves import render_origins
from t5x_scale.core.staging import check_target, staged
from t5x_scale.models.assembly import to_gin
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.records import architecture_to_json
from t5x_scale.models.weights import STORED_DTYPES, Weights
from t5x_scale.surgery.optimizer_state import join_state

STEP = 0


def check_arguments(command: str, source: str, output: str, dtype: str | None = None) -> None:
    """Checks what a converting command was given, before anything is read.

    Raises:
      UserError: a path is missing, the output exists, or the dtype is unknown.
    """
    if not source or not output:
        raise UserError(f"say what is read and where it goes: t5x_scale {command} SOURCE OUTPUT")
    check_target(output)
    if dtype is not None:
        check_choice("dtype", dtype, STORED_DTYPES)


def write_checkpoint(
    output: str,
    weights: Weights,
    *,
    source: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> files.Path:
    """Writes a checkpoint of ours at step 0, with what is needed to train it.

    Args:
      output: a directory that does not exist yet.
      weights: what to write; tensors are read block by block, none is held whole.
      source: where they came from, for the record.
      on_progress: called with bytes done and bytes in all.

    Raises:
      UserError: the output exists or cannot be written.
    """
    target = check_target(output)
    with staged(target) as directory:
        _write_small_files(directory, weights, source)
        write_stream(directory, STEP, stored_leaves(weights), _metadata(weights, source), on_progress=on_progress)
    return target


def stored_leaves(weights: Weights) -> dict[str, LazyArray]:
    """The tensors as a checkpoint names them: `params/...`, `opt_state/...`."""
    found = {f"params/{path}": leaf.array for path, leaf in weights.leaves.items()}
    return found | {path: leaf.array for path, leaf in join_state(weights.moments, weights.counters).items()}


def _write_small_files(directory: files.Path, weights: Weights, source: str) -> None:
    files.write_text(directory / "origin.txt", f"from {source}\n" + render_origins(weights.leaves, weights.dropped))
    files.write_json(directory / "conversion.json", _conversion(weights, source))
    if weights.architecture is not None:
        files.write_text(directory / "model.gin", _model_text(weights, source))
    if weights.tokenizer:
        folder = files.make_directory(directory / TOKENIZER)
        for name, content in weights.tokenizer.items():
            (folder / name).write_bytes(content)


def _model_text(weights: Weights, source: str) -> str:
    """The gin file of the model. In which dtypes a run computes and keeps its parameters is the machine's business."""
    count = sum(leaf.array.size for leaf in weights.leaves.values())
    architecture = weights.architecture.with_config(dtype=ModelConfig.dtype, param_dtype=ModelConfig.param_dtype)
    return to_gin(architecture, comment=f"{count:,} parameters, from {source}.")


def _metadata(weights: Weights, source: str) -> dict[str, Any]:
    return {"conversion": _conversion(weights, source)}


def _conversion(weights: Weights, source: str) -> dict[str, Any]:
    architecture = weights.architecture
    return {
        "source": source,
        "recipe": list(weights.recipe),
        "architecture": None if architecture is None else architecture_to_json(architecture),
        "versions": {"t5x_scale": __version__} | {name: package_version(name) for name in PACKAGES},
    }
