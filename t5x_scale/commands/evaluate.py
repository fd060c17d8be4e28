"""`t5x_scale eval`: evaluate a checkpoint on a split of every source of a mixture."""

from __future__ import annotations

from typing import Any

import jax

from t5x_scale import run_files
from t5x_scale.beginning import load_parameters
from t5x_scale.core.distributed import ProcessConfig, join_run
from t5x_scale.core.files import make_directory, to_path, write_json
from t5x_scale.data.pipeline import DataConfig, make_eval_sources
from t5x_scale.evaluation import EvaluationConfig
from t5x_scale.evaluation import evaluate as evaluate_sources
from t5x_scale.program import Program, Runtime


def evaluate(
    program: Program,
    data: DataConfig,
    model_dir: str,
    checkpoint_path: str | None = None,
    evaluation: EvaluationConfig = EvaluationConfig(),
    output: str | None = None,
    processes: ProcessConfig = ProcessConfig(),
) -> int:
    """Evaluates the newest checkpoint of a run, or the one named, and prints a table.

    Args:
      program: the model and its placement; no optimiser is needed.
      data: the mixture whose sources are evaluated.
      model_dir: of the run; token stores are looked for there unless `data.store_dir` says otherwise.
      checkpoint_path: a run or a step of one, in place of `model_dir`.
      evaluation: the split, batch size and number of batches.
      output: a JSON file for the results, or None.
      processes: how long several processes wait for each other.

    Returns:
      0.
    """
    join_run(processes)
    run_files.check_settings(model_dir)
    runtime = program.make()
    run_files.check_data(runtime, data, evaluation.batch_size)
    if output is not None:
        make_directory(to_path(output).parent)
    params, place = load_parameters(runtime, checkpoint_path or model_dir)
    sources = make_eval_sources(data, **evaluation.options(), **run_files.data_options(model_dir))
    metrics = evaluate_sources(runtime.eval_step, runtime.batch_sharding, params, sources)
    if jax.process_index() == 0:
        print(f"{place}, split {evaluation.split}")
        print(_table(metrics))
        if output is not None:
            write_json(output, {"checkpoint": place, "metrics": metrics})
            print(f"written to {output}")
    return 0


def _table(metrics: dict[str, float]) -> str:
    names = sorted({name.rsplit("/", 1)[0] for name in metrics})
    columns = ("loss", "perplexity", "accuracy", "tokens")
    width = max(len(name) for name in names)
    lines = [f"{'':{width}}" + "".join(f"{column:>14}" for column in columns)]
    for name in names:
        cells = [metrics[f"{name}/{column}"] for column in columns]
        lines.append(f"{name:{width}}{cells[0]:14.4f}{cells[1]:14.3f}{cells[2]:14.4f}{int(cells[3]):14,}")
    return "\n".join(lines)


def dry_run(program: Program, **_: Any) -> str:
    """The parameter table and totals, without allocating anything."""
    return run_files.parameter_report(Runtime(program, program.mesh.make_abstract_mesh()))
