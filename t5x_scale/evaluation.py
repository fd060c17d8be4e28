"""Teacher-forced evaluation over whole splits."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from t5x_scale.core.batch import LOSS_WEIGHTS, TARGET_TOKENS
from t5x_scale.core.errors import UserError
from t5x_scale.data.prefetch import host_rows, make_global_batch
from t5x_scale.metrics import RowSums


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """When and on what a run is evaluated.

    Attributes:
      every_steps: between evaluations during training; None evaluates at the end only, 0 never.
      split: of every source of the mixture.
      batch_size: rows of a batch; the training's last size when None.
      max_batches: ends every pass early; None goes through the whole split.
    """

    every_steps: int | None = None
    split: str = "validation"
    batch_size: int | None = None
    max_batches: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("every_steps", 0), ("batch_size", 1), ("max_batches", 1)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= least):
                raise UserError(f"EvaluationConfig.{name} is {value!r}; it must be {least} or more, or None")

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after `step` steps."""
        return bool(self.every_steps) and step > 0 and step % self.every_steps == 0

    def options(self) -> dict[str, Any]:
        """What `data.pipeline.make_eval_sources` needs to know."""
        return {"split": self.split, "batch_size": self.batch_size, "max_batches": self.max_batches}


class EvalBatches(Protocol):
    """What evaluation needs of a source: a fixed number of batches of one shape."""

    num_batches: int
    batch_size: int

    def batch(self, index: int, rows: np.ndarray | slice | None = None) -> dict[str, np.ndarray]:
        """Batch `index`, from 0: the fields of `core.batch`, each [rows, L]; of all rows, or of those named."""
        ...


def evaluate(
    eval_step: Callable[[Any, Any], Any],
    sharding: jax.sharding.Sharding,
    params: Any,
    sources: Mapping[str, EvalBatches],
) -> dict[str, float]:
    """Goes once through every source.

    Args:
      eval_step: `(params, batch) -> TokenLosses`, compiled.
      sharding: of the fields of a batch.
      params: the parameters.
      sources: {task: batches}.

    Returns:
      {"eval/<task>/loss": nats a token, ".../perplexity", ".../accuracy", ".../tokens"}, the tasks called as in
      `metric_names`.
    """
    metrics: dict[str, float] = {}
    for name, source in zip(metric_names(sources), sources.values(), strict=True):
        sums = _sum_batches(eval_step, sharding, params, source)
        weight = sums["weight"]
        loss = sums["cross_entropy"] / weight
        metrics[f"eval/{name}/loss"] = loss
        metrics[f"eval/{name}/perplexity"] = math.exp(min(loss, 700.0))
        metrics[f"eval/{name}/accuracy"] = sums["correct"] / weight
        metrics[f"eval/{name}/tokens"] = weight
    return metrics


def metric_names(sources: Iterable[str]) -> list[str]:
    """What sources are called in names of metrics: `text:/a/b.txt` becomes `text_a_b.txt`; no two are alike."""
    names: list[str] = []
    for source in sources:
        plain = re.sub(r"[^A-Za-z0-9_.\-]+", "_", source)
        name, number = plain, 1
        while name in names:
            number += 1
            name = f"{plain}-{number}"
        names.append(name)
    return names


def evaluate_rows(
    row_eval_step: Callable[[Any, Any], Any],
    sharding: jax.sharding.Sharding,
    params: Any,
    sources: Mapping[str, EvalBatches],
) -> dict[str, RowSums]:
    """Goes once through every source, and keeps the rows apart. For a single process.

    Args:
      row_eval_step: `(params, batch) -> TokenLosses` of each row, compiled.
      sharding, params, sources: as in `evaluate`.

    Returns:
      {task: sums}, the tasks called as in `metric_names`.
    """
    names = metric_names(sources)
    rows = [_rows_of(row_eval_step, sharding, params, source) for source in sources.values()]
    return dict(zip(names, rows, strict=True))


def _rows_of(
    row_eval_step: Callable[[Any, Any], Any], sharding: jax.sharding.Sharding, params: Any, source: EvalBatches
) -> RowSums:
    make_global, digest, results = make_global_batch(sharding), hashlib.sha256(), []
    for index in range(source.num_batches):
        batch = source.batch(index, slice(0, source.batch_size))
        digest.update(batch[TARGET_TOKENS][batch[LOSS_WEIGHTS] > 0].astype("<i4").tobytes())
        results.append(row_eval_step(params, make_global(batch)))
    fetched = jax.device_get(results)
    sums = {
        name: np.concatenate([getattr(result, name) for result in fetched]).astype(np.float64)
        for name in ("cross_entropy", "correct", "weight")
    }
    # Rows that only fill up the last batch.
    scored = sums["weight"] > 0
    return RowSums(**{name: values[scored] for name, values in sums.items()}, tokens=digest.hexdigest()[:16])


def _sum_batches(
    eval_step: Callable[[Any, Any], Any], sharding: jax.sharding.Sharding, params: Any, source: EvalBatches
) -> dict[str, float]:
    make_global = make_global_batch(sharding)
    rows = host_rows(sharding, source.batch_size)
    results = [eval_step(params, make_global(source.batch(index, rows))) for index in range(source.num_batches)]
    # Added on the host in float64: a sum over a million tokens keeps its digits. Fetched after the last dispatch.
    fetched = [jax.device_get(result)._asdict() for result in results]
    return {key: math.fsum(float(sums[key]) for sums in fetched) for key in fetched[0]}
