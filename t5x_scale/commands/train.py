"""`t5x_scale train`: the order of operations of a run, and nothing else.

The same command again resumes: what is saved decides where it starts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import jax

from t5x_scale import run_files
from t5x_scale.beginning import Beginning, check_beginning
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.together import list_together, read_together
from t5x_scale.commands.training.course import Course, Start, check_interventions
from t5x_scale.commands.training.loop import Ending, Loop
from t5x_scale.commands.training.memory_errors import explained
from t5x_scale.commands.training.probes import Probes
from t5x_scale.conversion.starting import Surgery
from t5x_scale.core.distributed import ProcessConfig, join_run
from t5x_scale.core.errors import UserError, to_one_line
from t5x_scale.core.files import make_directory
from t5x_scale.core.preemption import EXIT_RESUMABLE, PreemptionConfig, StopSignal
from t5x_scale.data.pipeline import DataConfig, make_eval_sources, make_pipeline
from t5x_scale.evaluation import EvaluationConfig
from t5x_scale.monitor import phases
from t5x_scale.monitor.health import Health, HealthConfig
from t5x_scale.monitor.plan_band import PlanWatch, find_plan_band, keep_plan
from t5x_scale.monitor.report import make_report
from t5x_scale.monitor.spikes import SpikeGuard
from t5x_scale.monitor.status import StatusLine
from t5x_scale.monitor.throughput import Throughput
from t5x_scale.monitor.writers import MetricWriters
from t5x_scale.planner.hindsight import JUDGES
from t5x_scale.program import Program, Runtime

LOGGER = logging.getLogger(__name__)


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
    plan: str | None = None,
    log_every_steps: int = 10,
    processes: ProcessConfig = ProcessConfig(),
    preemption: PreemptionConfig = PreemptionConfig(),
    health: HealthConfig = HealthConfig(),
    spikes: SpikeGuard = SpikeGuard(),
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
      plan: the plan.json that the run is watched against; it is kept beside the run.
      log_every_steps: steps between status lines; metrics are recorded for every step in any case.
      processes: how long the processes of a run wait for each other.
      preemption: what else than a signal stops the run.
      health: what they tell of themselves, and who watches over it.
      spikes: what a spike of the loss is, and what is done about one.
      config_text: the resolved configuration, kept beside the run.
      command_line: the words of this command, likewise.

    Returns:
      0 when `train_steps` steps are done, 75 when stopped, saved and resumable.

    Raises:
      UserError: the configuration, MODEL_DIR or data do not fit; or a spike is to end the run.
    """
    join_run(processes)
    run_files.check_settings(model_dir, train_steps=train_steps, log_every_steps=log_every_steps)
    runtime = program.make()
    run_files.check_data(runtime, data, evaluation.batch_size)
    if len(set(data.schedule.sizes())) > 1:
        # The first batch is refused when its step is compiled; the last is not to be after days.
        run_files.check_steps(runtime, data, log_every_steps)
    beginning = Beginning(initial_checkpoint_path, tuple(initial_transforms), initial_optimizer)
    run_files.check_run(model_dir, run_files.make_record(runtime, data, train_steps, beginning), train_steps)
    # Before this process says anything of itself in the run's directory.
    check_interventions(CheckpointManager(model_dir), model_dir)
    runtime.check_compiler_options()
    run_files.warn_of_copies(runtime)
    if not list_together(CheckpointManager(model_dir).directory):
        read_together(lambda: check_beginning(runtime, beginning), "what the run begins with")
    band = find_plan_band(plan, model_dir)
    make_directory(model_dir)
    options = run_files.data_options(model_dir)
    source = make_pipeline(data, **options)
    eval_sources = {} if evaluation.every_steps == 0 else make_eval_sources(data, **evaluation.options(), **options)

    record = run_files.make_record(runtime, data, train_steps, beginning, source)
    primary = jax.process_index() == 0
    alive = Health(model_dir, health, jax.process_index(), jax.process_count(), command_line)
    with (
        alive,
        CheckpointManager(model_dir, checkpoint, alive.async_save) as manager,
        StopSignal(preemption) as stop,
        explained(runtime, source),
    ):
        course = Course(model_dir, runtime, manager, source, record, beginning, train_steps, spikes, alive)
        start = course.start()
        run_files.write_run_files(model_dir, runtime, start.source, start.metadata["run"], config_text, command_line)
        if primary:
            keep_plan(plan, model_dir)
            text = run_files.banner(model_dir, runtime, start.step, train_steps)
            print(text, start.source.describe(), sep="\n", flush=True)
        throughput = run_files.make_throughput(runtime, data, alive)
        with MetricWriters(model_dir, enabled=primary) as writers, StatusLine(enabled=primary) as line:
            alive.connect(writers, line, throughput)
            about = {"processes": jax.process_count(), "devices": jax.device_count(), "pid": os.getpid()}
            writers.event("start", start.step, **about)
            manager.report_to(writers.event)
            probes = Probes(runtime, alive, writers)
            loop = Loop(
                runtime,
                eval_sources,
                manager,
                evaluation,
                spikes,
                log_every_steps,
                throughput,
                writers,
                line,
                probes,
                PlanWatch(band, writers, line),
            )
            code = None
            while code is None:
                ending = loop.run(start, train_steps, stop)
                if ending.spike is not None:
                    start = _turn_back(course, ending, start, throughput, writers)
                code = ending.code
        if code == EXIT_RESUMABLE:
            alive.ending(f"told to stop: {stop.reason}" if stop.reason else "told to stop")
    if code == 0 and primary:
        print(f"done: {train_steps} steps{_report(model_dir)}")
    return code


def _report(model_dir: str) -> str:
    """Makes the report of a finished run and says where it is. Whatever goes wrong there, the run is finished."""
    try:
        return f"; see {make_report(model_dir, JUDGES)}"
    except Exception as error:
        reason = to_one_line(str(error)) or type(error).__name__
        LOGGER.warning("the run is finished, but its report cannot be made: %s", reason)
        return ""


def _turn_back(
    course: Course, ending: Ending, start: Start, throughput: Throughput, writers: MetricWriters
) -> Start | None:
    """What the run goes on with after a spike; None where it stops and leaves that to the next process.

    Raises:
      UserError: the spike ends the run.
    """
    try:
        course.go_back(ending.spike, start.source)
    except UserError as error:
        writers.event("stop", ending.spike.step, reason=str(error))
        raise
    if ending.code is not None:
        return None
    with throughput.pause(phases.REWIND, ending.spike.step):
        start = course.start()
    throughput.moved_back(start.step)
    return start


def dry_run(program: Program, data: DataConfig, log_every_steps: int = 10, **_: Any) -> str:
    """The parameter table and totals, without allocating anything; what the step's tracing refuses is refused.

    Kernels are chosen for `MeshConfig.platform`, which hardware files name: the devices need not be here.
    """
    runtime = Runtime(program, program.mesh.make_abstract_mesh())
    run_files.check_steps(runtime, data, log_every_steps)
    return run_files.parameter_report(runtime)
