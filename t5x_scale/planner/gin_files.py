"""A plan as the gin files of its run."""

from __future__ import annotations

import math
import textwrap

from t5x_scale.planner.plans import Plan

# The machines that gin/hardware has files for, with the sizes of their mesh.
SHIPPED = {
    "cpu_1": (1, 1, 1),
    "h200_1": (1, 1, 1),
    "tpu7x_64": (64, 2, 1),
    "v4_64": (64, 1, 1),
    "v4_512": (512, 1, 1),
    "v4_2x3072": (256, 12, 2),
    "v5e_16": (16, 1, 1),
    "v5e_256": (256, 1, 1),
    "v5p_64": (64, 1, 1),
    "v5p_128": (128, 1, 1),
    "v5p_512": (512, 1, 1),
    "v5p_2048": (2048, 1, 1),
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


def run_text(plan: Plan, title: str, directory: str) -> str:
    """run.gin: batches, steps, optimiser, machine, and the reasons for them on top.

    Args:
      plan: of the run.
      title: what was asked for.
      directory: where the files lie, for the command that is shown.
    """
    machine, mesh = plan.site.machine, plan.site.mesh
    schedule = plan["schedule"].value
    epochs = f"MAX_EPOCHS = {math.ceil(plan.epochs * 1.001)}.0\n" if plan.epochs is not None else ""
    lines = [
        _header(plan, title, directory),
        "from __gin__ import dynamic_registration",
        "from t5x_scale.optim import adamw",
        "from t5x_scale.optim import schedules",
        *([] if _is_shipped(plan) else ["from t5x_scale.partitioning import mesh"]),
        "import t5x_scale.step as step",
        "",
        'include "gin/optim/adamw.gin"',
        'include "gin/runs/pretrain.gin"',
        f'include "gin/{_hardware(plan)}.gin"',
        "",
        f"TRAIN_STEPS = {plan.batch.steps}",
        f"BATCH_SIZE = {plan.batch.gin}",
        f'TASK_FEATURE_LENGTHS = {{"targets": {plan.batch.length}}}',
        epochs,
        "schedules.Cosine:",
        f"    peak = {plan['learning rate'].value!r}",
        f"    warmup_steps = {schedule['warmup_steps']}",
        f"    floor_ratio = {schedule['floor_ratio']}",
        f"adamw.AdamW.b2 = {plan['beta2'].value}",
        f"step.StepConfig.micro_batches = {plan.cost.micro_batches}",
    ]
    if not _is_shipped(plan):
        topology = f'"{machine.topology}"' if machine.topology else "None"
        lines += ["", f"TOPOLOGY = {topology}", "", "mesh.MeshConfig:"]
        sizes = {"fsdp": mesh.fsdp, "model": mesh.model, "dcn_data": mesh.slices}
        lines += [f"    {name} = {size}" for name, size in sizes.items() if size > 1 or name == "fsdp"]
    return "\n".join(lines) + "\n"


def train_command(directory: str) -> str:
    """What trains the plan, but for data and vocabulary."""
    return (
        f"t5x_scale train --gin_file={directory}/model.gin --gin_file={directory}/run.gin "
        '--gin.MODEL_DIR=\\"…\\" --gin.MIXTURE_OR_TASK_NAME=\\"…\\" --gin.VOCABULARY=\\"…\\"'
    )


def _header(plan: Plan, title: str, directory: str) -> str:
    paragraphs = [f"{title}. Give it data, a vocabulary and a directory:", f"  {train_command(directory)}", ""]
    for choice in plan.choices:
        paragraphs.append(f"{choice.name}: {choice.text}. Why: {choice.reason}.")
    paragraphs += ["", *(f"Mind: {line}." for line in plan.warnings)]
    lines = [line for text in paragraphs for line in (textwrap.wrap(text, 116, subsequent_indent="  ") or [""])]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _is_shipped(plan: Plan) -> bool:
    mesh = plan.site.mesh
    return SHIPPED.get(plan.site.machine.gin_name) == (mesh.fsdp, mesh.model, mesh.slices)


def _hardware(plan: Plan) -> str:
    if _is_shipped(plan):
        return f"hardware/{plan.site.machine.gin_name}"
    return "sharding/fsdp_model"
