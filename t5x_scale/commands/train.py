"""`t5x_scale train`: the order of operations of a run, and nothing else.

The same command again resumes: what is saved decides where it starts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import jax

from t5x_scale import run_files
from t5x_scale.beginning import Beginning, begin, check_beginning
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.resume import compare_run_records
from t5x_scale.commands.training.loop import Loop
from t5x_scale.conversion.starting import Surgery
from t5x_scale.core.distributed import ProcessConfig, join_run
from t5x_scale.core.files import make_directory
from t5x_scale.core.preemption import StopSignal
from t5x_scale.data.pipeline import DataConfig, make_eval_sources, make_pipeline
from t5x_scale.evaluation import EvaluationConfig
from t5x_scale.monitor import phases
from t5x_scale.monitor.health import Health, HealthConfig
from t5x_scale.monitor.report import make_report
from t5x_scale.program import Program, Runtime
from t5x_scale.train_state import TrainState

logger = logging.getLogger(__name__)


def train(
    program: Program,
    data: DataConfig,
    train_steps: int,
    model_dir: str,
    checkpoint: CheckpointConfig = CheckpointConfig(),
    evaluation: EvaluationConfig = EvaluationConfig(),
    initial_checkpoint_path: str | None = None,
    initial_transforms: Sequence[Surgery] = (),
    initial_optimizer: str = "reset",
    log_every_steps: int = 10,
    processes: ProcessConfig = ProcessConfig(),
    health: HealthConfig = HealthConfig(),
    config_text: str = "",
    command_line: str = "",
) -> int:
    """Trains until `train_steps` steps are done, from whatever `model_dir` already holds.

    Args:
      program: model, optimiser and placement.
      data: what to train on.
      train_steps: steps of the whole run, earlier ones included.
      model_dir: where the run lives.
      checkpoint: when to save and what to keep.
      evaluation: when to evaluate and on what.
      initial_checkpoint_path: what a new run begins with: a run or a step of one, a converted checkpoint, a Hugging
        Face directory or a T5X checkpoint.
      initial_transforms: surgeries on it, in order, such as `[@depth.DepthUpscale()]`.
      initial_optimizer: "reset" begins with a fresh optimiser, "restore" with that checkpoint's moments.
      log_every_steps: steps between status lines; metrics are recorded for every step in any case.
      processes: how long the processes of a run wait for each other.
      health: what they tell of themselves, and who watches over it.
      config_text: the resolved configuration, kept beside the run.
      command_line: the words of this command, likewise.

    Returns:
      0 when `train_steps` steps are done, 75 when stopped, saved and resumable.
    """
    join_run(processes)
    run_files.check_settings(model_dir, train_steps=train_steps, log_every_steps=log_every_steps)
    runtime = program.make()
    run_files.check_data(runtime, data, evaluation.batch_size)
    beginning = Beginning(initial_checkpoint_path, tuple(initial_transforms), initial_optimizer)
    run_files.check_run(model_dir, run_files.make_record(runtime, data, train_steps, beginning), train_steps)
    runtime.check_compiler_options()
    run_files.warn_of_copies(runtime)
    if not CheckpointManager(model_dir).steps():
        check_beginning(runtime, beginning)
    make_directory(model_dir)
    options = run_files.data_options(model_dir)
    source = make_pipeline(data, **options)
    eval_sources = {} if evaluation.every_steps == 0 else make_eval_sources(data, **evaluation.options(), **options)

    alive = Health(model_dir, health, jax.process_index(), jax.process_count())
    with alive, CheckpointManager(model_dir, checkpoint) as manager, StopSignal() as stop:
        record = run_files.make_record(runtime, data, train_steps, beginning, source)
        if manager.latest() is not None:
            with alive.during(phases.RESTORE):
                state, record, position, step = _resume(manager, runtime, record)
            source = source.resumed(position, step)
            source.check_enough(train_steps)
        else:
            source.check_enough(train_steps)
            state, step = begin(model_dir, runtime, beginning), 0
        run_files.write_run_files(model_dir, runtime, source, record, config_text, command_line)
        if jax.process_index() == 0:
            print(run_files.banner(model_dir, runtime, step, train_steps), source.describe(), sep="\n", flush=True)
        throughput = run_files.make_throughput(runtime, data, alive)
        loop = Loop(runtime, source, eval_sources, manager, evaluation, record, log_every_steps, throughput)
        code = loop.run(model_dir, state, step, train_steps, stop)
    if code == 0 and jax.process_index() == 0:
        print(f"done: {train_steps} steps; see {make_report(model_dir)}")
    return code


def _resume(
    manager: CheckpointManager, runtime: Runtime, record: dict[str, Any]
) -> tuple[TrainState, dict[str, Any], dict[str, Any], int]:
    """The newest state that verifies, once the policy has allowed this command to continue it.

    Returns:
      The state, the run record from now on, the data position and the step.
    """
    restored = manager.restore(runtime.abstract_state)
    decision = compare_run_records(restored.metadata["run"], record, restored.step)
    for warning in decision.warnings:
        logger.warning("%s", warning)
    for change in decision.changes:
        logger.warning("changed from step %d on: %s", restored.step, change.render())
    return restored.state, decision.record, restored.metadata["data"], restored.step


def dry_run(program: Program, data: DataConfig, **_: Any) -> str:
    """The parameter table and totals, without allocating anything; what train refuses for its shapes is refused."""
    runtime = Runtime(program, program.mesh.make_abstract_mesh())
    run_files.check_shapes(runtime, data)
    return run_files.parameter_report(runtime)
