"""A run on record: its identity for the resume policy, and the files that stand beside it in MODEL_DIR."""

from __future__ import annotations

import logging
import os
from typing import Any

import jax

from t5x_scale.beginning import Beginning
from t5x_scale.checkpoint.layout import DamagedError
from t5x_scale.checkpoint.manager import CheckpointManager
from t5x_scale.checkpoint.resume import compare_run_records, make_run_record
from t5x_scale.checkpoint.together import read_together
from t5x_scale.core import batch as fields
from t5x_scale.core.describe import describe
from t5x_scale.core.environment import describe_environment
from t5x_scale.core.errors import UserError
from t5x_scale.core.files import to_path, write_json, write_text
from t5x_scale.core.trees import flatten
from t5x_scale.data.batch_source import BatchSource
from t5x_scale.data.pipeline import DataConfig
from t5x_scale.data.vocabulary import load_vocabulary
from t5x_scale.models import accounting
from t5x_scale.monitor.health import Health
from t5x_scale.monitor.peaks import peak_flops
from t5x_scale.monitor.throughput import Throughput
from t5x_scale.partitioning.replication import describe_copies, find_copies
from t5x_scale.partitioning.shardings import make_sharding
from t5x_scale.program import Runtime

logger = logging.getLogger(__name__)


def data_options(model_dir: str) -> dict[str, Any]:
    """How this process opens data: where stores lie by default, and which rows are its own."""
    return {
        "default_store_dir": to_path(model_dir) / "token_stores",
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def check_settings(model_dir: str, **counts: int) -> None:
    """Checks what a command was given, before anything else is done.

    Args:
      model_dir: of the run; must name a place.
      **counts: whole numbers that must be at least 1.

    Raises:
      UserError: naming the value.
    """
    if not isinstance(model_dir, str | os.PathLike) or not os.fspath(model_dir).strip():
        raise UserError(f"MODEL_DIR is {model_dir!r}; give the directory of the run")
    check_counts(**counts)


def check_counts(**counts: int) -> None:
    """Checks whole numbers that must be at least 1.

    Raises:
      UserError: naming the value.
    """
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} is {value!r}; it must be a whole number, 1 or more")


def check_shapes(runtime: Runtime, data: DataConfig, eval_batch_size: int | None = None) -> None:
    """Checks that every batch divides over the mesh and into micro-batches; reads no file.

    Raises:
      UserError: naming the sizes.
    """
    for size in data.schedule.sizes():
        runtime.check_batch_size(size, data.sequence_length)
    if eval_batch_size is not None:
        shape = (eval_batch_size, data.sequence_length)
        make_sharding(runtime.mesh, runtime.program.rules, fields.AXES, shape, "an evaluation batch")


def check_steps(runtime: Runtime, data: DataConfig, log_every_steps: int) -> None:
    """Traces the step of every batch size, on an abstract mesh too: a second each, and nothing is compiled.

    Raises:
      UserError: a batch, a layer or a schedule does not divide, or a kernel does not exist or cover the case.
    """
    check_counts(log_every_steps=log_every_steps)
    check_shapes(runtime, data)
    for size in dict.fromkeys(data.schedule.sizes()):
        runtime.trace_step(size, data.sequence_length, log_every_steps, data.field_names)


def check_data(runtime: Runtime, data: DataConfig, eval_batch_size: int | None = None) -> None:
    """Checks that the data fits the program.

    Raises:
      UserError: the vocabulary is larger than the model's embedding, or a batch size does not divide.
    """
    vocabulary = load_vocabulary(data.vocabulary)
    rows = runtime.program.model.config.vocab_size
    if vocabulary.size > rows:
        raise UserError(
            f"the vocabulary {data.vocabulary} has {vocabulary.size} ids and the model's embedding {rows} rows: "
            f"set ModelConfig.vocab_size to {vocabulary.size} or more"
        )
    check_shapes(runtime, data, eval_batch_size)


def warn_of_copies(runtime: Runtime) -> None:
    """Warns of large parameters that devices hold alike although their mesh axis could split them."""
    for copies in find_copies(flatten(runtime.abstract_params)):
        logger.warning("%s", describe_copies(copies))


def check_run(model_dir: str, record: dict[str, Any], train_steps: int) -> None:
    """Refuses a directory that holds something else, before anything is written to it.

    The newest record that can be read is compared; one that cannot is left to the restore, which falls back loudly.

    Args:
      model_dir: of the run.
      record: see `make_record`; without stores, which are compared once they are open.
      train_steps: of the whole run.

    Raises:
      UserError: it holds another run, or this one with more steps than asked for; in all processes if in one.
    """
    what = f"the checkpoints in {model_dir}"
    read_together(lambda: _check_newest(CheckpointManager(model_dir), model_dir, record, train_steps), what)


def _check_newest(manager: CheckpointManager, model_dir: str, record: dict[str, Any], train_steps: int) -> None:
    for step in reversed(manager.steps()):
        try:
            saved = manager.read_metadata(step).get("run")
        except DamagedError:
            continue
        if saved is None:
            raise UserError(
                f"{model_dir} holds a converted checkpoint, not a run: give it as INITIAL_CHECKPOINT_PATH, and a "
                "MODEL_DIR of its own to the run"
            )
        refused = {name: value for name, value in saved["refused"].items() if name in record["refused"]}
        compare_run_records({**saved, "refused": refused}, record, step)
        if step > train_steps:
            raise UserError(
                f"the run in {model_dir} is at step {step}, beyond TRAIN_STEPS = {train_steps}: raise TRAIN_STEPS, or "
                "use a new MODEL_DIR"
            )
        return


def make_record(
    runtime: Runtime,
    data: DataConfig,
    train_steps: int,
    beginning: Beginning | None = None,
    source: BatchSource | None = None,
) -> dict[str, Any]:
    """What the resume policy compares: free, recorded and refused entries, and the environment.

    Without `source` the data stores are left out.
    """
    program, beginning = runtime.program, beginning or Beginning()
    stores = {} if source is None else {"stores": {name: store.fingerprint for name, store in source.stores.items()}}
    return make_run_record(
        free={
            "train_steps": train_steps,
            "mesh": dict(runtime.mesh.shape),
            "rules": describe(program.rules),
            # For whoever takes the checkpoint on: the context it has seen, and where its tokenizer lies.
            "sequence_length": data.sequence_length,
            "vocabulary": data.vocabulary,
        },
        recorded={
            "optimizer": describe(program.optimizer),
            "step": describe(program.step),
            "batch_size": describe(data.schedule.steps),
            "mixture": describe(data.mixture),
            "skip": describe(data.skipped),
            "initial_checkpoint_path": beginning.checkpoint_path,
            "initial_transforms": describe(beginning.transforms),
            "initial_optimizer": beginning.optimizer,
        },
        refused={
            "model": program.model.architecture(),
            "optimizer_class": type(program.optimizer).__name__,
            "seed": {"program": program.seed, "data": data.seed},
            **stores,
        },
        environment={**describe_environment(), "compiler_options": runtime.compiler_options},
    )


def write_run_files(
    model_dir: str, runtime: Runtime, source: BatchSource, record: dict[str, Any], config_text: str, command_line: str
) -> None:
    """Writes `config.gin`, `model-info.txt` and `run.json`, from process 0 only."""
    if jax.process_index():
        return
    directory = to_path(model_dir)
    write_text(directory / "config.gin", config_text)
    write_text(directory / "model-info.txt", parameter_report(runtime) + "\n\n" + source.describe() + "\n")
    write_json(directory / "run.json", {**record, "command_line": command_line, "data": source.parts})


def make_throughput(runtime: Runtime, data: DataConfig, health: Health | None = None) -> Throughput:
    """The speedometer of a run: tokens a step, model FLOPs a token in both conventions, peak of the devices."""
    devices = runtime.mesh.devices.flat
    flops = {kind: flops_per_token(runtime, data.sequence_length, kind) for kind in ("full", "causal")}
    return Throughput(
        data.schedule.sizes()[-1] * data.sequence_length,
        flops_per_token=flops["full"],
        flops_per_token_causal=flops["causal"],
        peak_flops_per_device=peak_flops(devices[0].device_kind),
        device_count=runtime.mesh.size,
        listener=health,
        before=health.seconds() if health else None,
    )


def flops_per_token(runtime: Runtime, length: int, convention: str) -> float:
    """Model FLOPs of a training step a token, with `full` or `causal` attention."""
    shapes = {path: leaf.shape for path, leaf in flatten(runtime.abstract_params).items()}
    config = runtime.program.model.config
    counts = accounting.count_tree(shapes, config.num_experts_per_token)
    return accounting.train_flops_per_token(counts, config, length, convention=convention)


def banner(model_dir: str, runtime: Runtime, step: int, train_steps: int) -> str:
    """One line that says what starts, or goes on, and where."""
    count = sum(row.count for row in runtime.parameter_rows())
    begins = f"resuming at step {step}" if step else "starting"
    return f"{begins} of {train_steps}: {count:,} parameters on {_mesh_text(runtime)}, in {model_dir}"


def _mesh_text(runtime: Runtime) -> str:
    return " x ".join(f"{name}={size}" for name, size in runtime.mesh.shape.items() if size > 1) or "one device"


def parameter_report(runtime: Runtime) -> str:
    """The parameter table (path, shape, dtype, axes, partition, count) and totals, without allocating anything."""
    rows = list(runtime.parameter_rows())
    cells = [("parameter", "shape", "dtype", "axes", "partition", "count")]
    cells += [
        (
            row.path,
            " x ".join(map(str, row.shape)),
            row.dtype,
            ", ".join(str(axis) for axis in row.axes),
            ", ".join(_partition(entry) for entry in (*row.spec, *(None,) * (len(row.shape) - len(row.spec)))),
            f"{row.count:,}",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    total = sum(row.count for row in rows)
    lines += ["", f"total: {total:,} parameters in {len(rows)} arrays; mesh: {_mesh_text(runtime)}"]
    lines += [_bytes_line("parameters", runtime.abstract_params)]
    if runtime.program.optimizer is not None:
        lines += [_bytes_line("optimiser state", runtime.abstract_state.opt_state)]
    lines += ["(gradients, activations and logits come on top while a step runs)"]
    return "\n".join(lines)


def _partition(entry: Any) -> str:
    return "-" if entry is None else entry if isinstance(entry, str) else "+".join(entry)


def _bytes_line(name: str, tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    shard = sum(_size(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    return f"{name}: {bytes_text(whole)} in all, {bytes_text(shard)} a device"


def bytes_text(number: float) -> str:
    """In GiB, or MiB when it is small."""
    return f"{number / 2**30:.3f} GiB" if number >= 2**28 else f"{number / 2**20:.3f} MiB"


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dimension in shape:
        size *= dimension
    return size
