"""A plan as the gin files of its run."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from t5x_scale.planner.batches import BatchPlan
from t5x_scale.planner.choices import Choice
from t5x_scale.planner.continuing import Continuation
from t5x_scale.planner.machines import Cost, Site
from t5x_scale.planner.plans import Plan

# The machines that gin/hardware has files for, with the sizes of their mesh.
SHIPPED = {
    "cpu_1": (1, 1, 1),
    "h200_1": (1, 1, 1),
    "tpu7x_64": (64, 2, 1),
    "v4_64": (64, 1, 1),
    "v4_512": (128, 4, 1),
    "v4_2x3072": (256, 12, 2),
    "v5e_16": (16, 1, 1),
    "v5e_256": (256, 1, 1),
    "v5p_64": (64, 1, 1),
    "v5p_128": (128, 1, 1),
    "v5p_512": (512, 1, 1),
    "v5p_2048": (128, 16, 1),
    "v6e_256": (256, 1, 1),
}
_SIZES = ("num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads", "head_dim", "vocab_size")


def model_text(plan: Plan) -> str:
    """model.gin: the shapes, and the family's file."""
    config, family = plan.shape.config, plan.shape.family
    sizes = "\n".join(f"    {name} = {getattr(config, name)}" for name in _SIZES)
    remat = "none" if plan.site.machine.chip.name == "cpu" else "full"
    return f"""\
# A {family} of {plan.shape.count.total:,} parameters: {plan["shape"].reason}.
from __gin__ import dynamic_registration
from t5x_scale.models import config

include "gin/models/{family}/{family}.gin"

config.ModelConfig:
{sizes}

REMAT = "{remat}"
"""


def run_text(plan: Plan, title: str, directory: str, watched: bool = False) -> str:
    """run.gin: batches, steps, optimiser, machine, and the reasons for them on top.

    Args:
      plan: of the run.
      title: what was asked for.
      directory: where the files lie, for the command that is shown.
      watched: whether plan.json lies there too, against whose curve the loss shall be watched.
    """
    schedule = plan["schedule"].value
    head = [*_header(plan.choices, plan.warnings, title, train_command(f"{directory}/model.gin", directory))]
    epochs = [] if plan.epochs is None else [f"MAX_EPOCHS = {math.ceil(plan.epochs * 1.001)}.0"]
    rate = [
        "schedules.Cosine:",
        f"    peak = {plan['learning rate'].value!r}",
        f"    warmup_steps = {schedule['warmup_steps']}",
        f"    floor_ratio = {schedule['floor_ratio']}",
    ]
    lines = [
        *head,
        *_imports(plan.site, "from t5x_scale.optim import schedules"),
        'include "gin/optim/adamw.gin"',
        'include "gin/runs/pretrain.gin"',
        f'include "gin/{_hardware(plan.site)}.gin"',
        "",
        *_batch(plan.batch),
        *epochs,
        *([f'PLAN = "{directory}/plan.json"'] if watched else []),
        "",
        *rate,
        *_step(plan["beta2"].value, plan.cost),
        *_machine(plan.site),
    ]
    return "\n".join(lines) + "\n"


def continuation_text(made: Continuation, title: str, directory: str) -> str:
    """run.gin of a continued run: shares, batches, steps, optimiser, machine, with the reasons on top."""
    schedule = made["schedule"].value
    command = train_command(made.base.gin or "IMPORTED/model.gin", directory)
    path = f'"{made.base.path}"' if made.base.path else "%gin.REQUIRED"
    lines = [
        *_header(made.choices, made.warnings, title, command),
        *_imports(made.site),
        'include "gin/optim/adamw.gin"',
        'include "gin/runs/domain.gin"',
        f'include "gin/{_hardware(made.site)}.gin"',
        "",
        f"INITIAL_CHECKPOINT_PATH = {path}",
        "# The names of your own tasks belong here.",
        f'MIXTURE_RATES = {{"new": {made.share:.4g}, "old": {1 - made.share:.4g}}}',
        *_batch(made.batch),
        "",
        f"PEAK_LEARNING_RATE = {made['learning rate'].value!r}",
        f"WARMUP_STEPS = {schedule['warmup_steps']}",
        f"FLOOR_RATIO = {schedule['floor_ratio']}",
        *_step(made["beta2"].value, made.cost),
        *_machine(made.site),
    ]
    return "\n".join(lines) + "\n"


def train_command(model: str, directory: str) -> str:
    """What trains the plan, but for data and vocabulary."""
    return (
        f"t5x_scale train --gin_file={model} --gin_file={directory}/run.gin "
        '--gin.MODEL_DIR=\\"…\\" --gin.MIXTURE_OR_TASK_NAME=\\"…\\" --gin.VOCABULARY=\\"…\\"'
    )


def _header(choices: Sequence[Choice], warnings: Sequence[str], title: str, command: str) -> list[str]:
    paragraphs = [f"{title}. Give it data, a vocabulary and a directory:", f"  {command}", ""]
    paragraphs += [f"{choice.name}: {choice.text}. Why: {choice.reason}." for choice in choices]
    paragraphs += ["", *(f"Mind: {line}." for line in warnings)]
    lines = [line for text in paragraphs for line in (textwrap.wrap(text, 116, subsequent_indent="  ") or [""])]
    return [f"# {line}".rstrip() for line in lines]


def _imports(site: Site, *others: str) -> list[str]:
    mesh = [] if _is_shipped(site) else ["from t5x_scale.partitioning import mesh"]
    modules = ["from t5x_scale.optim import adamw", *others, *mesh, "import t5x_scale.step as step"]
    return ["from __gin__ import dynamic_registration", *modules, ""]


def _batch(batch: BatchPlan) -> list[str]:
    return [
        f"TRAIN_STEPS = {batch.steps}",
        f"BATCH_SIZE = {batch.gin}",
        f'TASK_FEATURE_LENGTHS = {{"targets": {batch.length}}}',
    ]


def _step(beta2: float, cost: Cost) -> list[str]:
    return [f"adamw.AdamW.b2 = {beta2}", f"step.StepConfig.micro_batches = {cost.micro_batches}"]


def _machine(site: Site) -> list[str]:
    """What a file of gin/hardware would say; nothing where there is one."""
    if _is_shipped(site):
        return []
    sizes = {"fsdp": site.mesh.fsdp, "model": site.mesh.model, "dcn_data": site.mesh.slices}
    axes = [f"    {name} = {size}" for name, size in sizes.items() if size > 1 or name == "fsdp"]
    # Where there is a topology, kernels are the TPU's, wherever a dry run traces the step.
    platform = [] if site.machine.topology is None else ['    platform = "tpu"']
    return ["", f"TOPOLOGY = {_quoted(site.machine.topology)}", "", "mesh.MeshConfig:", *axes, *platform]


def _quoted(text: str | None) -> str:
    return "None" if text is None else f'"{text}"'


def _is_shipped(site: Site) -> bool:
    return SHIPPED.get(site.machine.gin_name) == (site.mesh.fsdp, site.mesh.model, site.mesh.slices)


def _hardware(site: Site) -> str:
    return f"hardware/{site.machine.gin_name}" if _is_shipped(site) else "sharding/fsdp_model"
