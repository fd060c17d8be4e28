"""A run as a row: its quantities by the names that laws give them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.models.accounting import ParameterCount, count_tree, train_flops_per_token
from t5x_scale.models.config import ModelConfig
from t5x_scale.monitor.metric_log import MetricLog, read_metrics

RUN, MODEL_INFO = "run.json", "model-info.txt"
# A line of the parameter table: path, shape, dtype, …, separated by two blanks or more.
_TABLE_LINE = re.compile(r"^(?P<path>\w+(?:/\w+)+) {2,}(?P<shape>\d+(?: x \d+)*) {2,}", re.MULTILINE)
_SOURCE = re.compile(r"data/(?P<name>[^/]+)/(?P<what>tokens|epochs)$")
_EVALUATED = re.compile(r"eval/(?P<name>[^/]+)/loss$")
# Of single steps, where nothing was evaluated.
_LAST_SHARE = 0.05

Row = dict[str, Any]


def is_run(path: str) -> bool:
    """Whether a directory is that of a training run."""
    return files.exists(files.to_path(path) / RUN)


def read_row(model_dir: str) -> Row:
    """The quantities of a finished run.

    `params` and `flops` count the tables, `bare_params` and `bare_flops` (6ND) do not; `flops` are those of all matrix
    products, attention included. `loss` is that of the last evaluation, sources weighted by their trained shares;
    `losses` and `shares` name the sources. `unique_tokens` are those seen once or more often.

    Raises:
      UserError: it is no run, or has not come to its end.
    """
    record, log = _read(model_dir)
    steps = _last(log, "train/loss", model_dir).step
    wanted = record["free"]["train_steps"]
    if steps < wanted:
        raise UserError(f"{model_dir} has come to step {steps} of {wanted}: the same command goes on with it")
    tokens = _last(log, "train/tokens", model_dir).value
    config, count = _model(model_dir, record)
    bare = count.total - count.embedding - count.head
    sources = _sources(log)
    unique = sum(seen / max(epochs, 1.0) for seen, epochs in sources.values()) or tokens
    row: Row = {
        "run": str(model_dir),
        "params": count.total,
        "bare_params": bare,
        "active_params": count.active,
        "tokens": tokens,
        "flops": tokens * train_flops_per_token(count, config, record["free"]["sequence_length"]),
        "bare_flops": 6.0 * bare * tokens,
        "steps": steps,
        "batch_tokens": tokens / steps,
        "vocab_size": config.vocab_size,
        "unique_tokens": unique,
        "epochs": tokens / unique,
        "shares": {name: seen / tokens for name, (seen, _) in sources.items()},
    }
    if "optim/learning_rate" in log.series:
        row["learning_rate"] = float(np.max(log.series["optim/learning_rate"].values))
    if config.num_experts:
        row |= {"experts": config.num_experts, "sparsity": 1 - count.active / count.total}
    row |= _losses(log, row["shares"])
    row["unit"] = (
        f"nats a token of {', '.join(row['losses'] or row['shares'])}, {record['free'].get('vocabulary', '?')}"
    )
    return row


class _Point:
    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value


def _read(model_dir: str) -> tuple[dict[str, Any], MetricLog]:
    path = files.to_path(model_dir) / RUN
    if not files.exists(path):
        raise UserError(f"{model_dir} is no training run: it has no {RUN}")
    try:
        record = json.loads(files.read_bounded(path))
        record["free"]["train_steps"], record["free"]["sequence_length"], record["refused"]["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error
    return record, read_metrics(model_dir)


def _last(log: MetricLog, name: str, model_dir: str) -> _Point:
    if name not in log.series:
        raise UserError(f"{model_dir} has no {name} on record: it has not begun")
    series = log.series[name]
    return _Point(int(series.steps[-1]), float(series.values[-1]))


def _model(model_dir: str, record: Mapping[str, Any]) -> tuple[ModelConfig, ParameterCount]:
    """Sizes by the record, and parameters by the table that the run wrote of its own."""
    path = files.to_path(model_dir) / MODEL_INFO
    text = files.read_bounded(path).decode() if files.exists(path) else ""
    shapes = {found["path"]: tuple(map(int, found["shape"].split(" x "))) for found in _TABLE_LINE.finditer(text)}
    if not shapes:
        raise UserError(f"{model_dir} has no table of parameters in {MODEL_INFO}")
    described = next((part["config"] for part in record["refused"]["model"].values() if "config" in part), None)
    if described is None:
        raise UserError(f"{files.to_path(model_dir) / RUN} does not say the sizes of the model")
    config = ModelConfig(**{name: value for name, value in described.items() if name != "class"})
    return config, count_tree(shapes, config.num_experts_per_token)


def _sources(log: MetricLog) -> dict[str, tuple[float, float]]:
    """(tokens, epochs) of each source, over the whole run."""
    found: dict[str, dict[str, float]] = {}
    for name, series in log.series.items():
        if match := _SOURCE.fullmatch(name):
            found.setdefault(match["name"], {})[match["what"]] = float(series.values[-1])
    return {name: (values["tokens"], values.get("epochs", 1.0)) for name, values in found.items() if "tokens" in values}


def _losses(log: MetricLog, shares: Mapping[str, float]) -> Row:
    trained = log.series["train/loss"].values
    last = max(1, math.ceil(len(trained) * _LAST_SHARE))
    row: Row = {"train_loss": float(np.mean(trained[-last:]))}
    losses = {match["name"]: float(s.values[-1]) for name, s in log.series.items() if (match := _EVALUATED.match(name))}
    weights = {name: shares.get(name, 0.0) for name in losses}
    if not any(weights.values()):
        weights = dict.fromkeys(losses, 1.0)
    total = sum(weights.values())
    row["losses"] = losses
    row["loss"] = sum(weights[name] * losses[name] for name in losses) / total if losses else row["train_loss"]
    return row
