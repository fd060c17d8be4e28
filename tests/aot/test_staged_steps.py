"""The TPU compiler takes steps in pipelines and with layered accumulation, and moves over links what it should."""

import dataclasses
import functools
import math
import re

import pytest

from t5x_scale.layers.moe import MoeMlp
from t5x_scale.models.blocks import ParallelBlock, SerialBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder
from t5x_scale.models.interface import DecoderModel
from t5x_scale.models.pipeline import PipelineConfig
from t5x_scale.optim import schedules
from t5x_scale.optim.adamw import AdamW
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.topologies import topology_devices
from t5x_scale.program import Program
from t5x_scale.step import StepConfig
from tests.fakes.collectives import count_collectives

LAYERS, EMBED, MLP, LENGTH, PARTS = 8, 1024, 4096, 1024, 8
CONFIG = ModelConfig(
    num_layers=LAYERS, embed_dim=EMBED, mlp_dim=MLP, num_heads=8, num_kv_heads=1, head_dim=128, vocab_size=32768
)


@functools.cache
def compiled(sizes, accumulation, pipeline=None):
    """A step of 32 x 1024 tokens on four chips of v5p, in bfloat16, with full remat."""
    model = DecoderModel(CONFIG, functools.partial(Decoder, block=ParallelBlock, remat="full"))
    step = StepConfig(1 if pipeline else PARTS, accumulation, pipeline)
    table = rules.pipeline() if pipeline else rules.fsdp_model()
    program = Program(model, AdamW(schedules.Constant(1e-3)), MeshConfig(**dict(sizes)), table, step)
    executable = program.make(topology_devices("v5p:2x2x1")).compile_step(32, LENGTH, 1)
    return count_collectives(executable.as_text()), executable.memory_analysis().temp_size_in_bytes


def test_experts_and_a_ring_in_a_pipeline():
    """A ragged product of each stage by itself: of several at once the compiler makes none."""
    config = dataclasses.replace(CONFIG, num_layers=2, mlp_dim=256, num_experts=4, num_experts_per_token=2)
    block = functools.partial(SerialBlock, mlp=MoeMlp)
    model = DecoderModel(config, functools.partial(Decoder, block=block, remat="full"))
    step = StepConfig(pipeline=PipelineConfig(4))
    mesh = MeshConfig(fsdp=1, stage=2, context=2)
    program = Program(model, AdamW(schedules.Constant(1e-3)), mesh, rules.pipeline(), step)
    text = program.make(topology_devices("v5p:2x2x1")).compile_step(8, LENGTH, 1).as_text()
    assert "splash_mqa_fwd" in text


def elements_gathered(counts):
    """Elements of a layer's kernels that arrive by all-gathers, over the whole step."""
    total = 0
    for (kind, shape), times in counts.items():
        for part in shape.strip("()").split(", "):
            sizes = [int(n) for n in part.split("[")[-1].rstrip("]").split(",") if n.isdigit()]
            if kind == "all-gather" and {EMBED, MLP} <= {*sizes}:
                total += times * math.prod(sizes)
    return total


KERNELS = 3 * EMBED * MLP


def test_layered_accumulation_gathers_a_layer_once_a_pass():
    plain, _ = compiled((("fsdp", 4),), "plain")
    layered, temporary = compiled((("fsdp", 4),), "layered")
    assert elements_gathered(plain) >= 2 * LAYERS * KERNELS * PARTS
    assert elements_gathered(layered) <= 2 * LAYERS * KERNELS
    # The residual stream of all micro-batches and layers is 1 GiB / 4; never all gathered weights, in float32 or not.
    assert temporary < 2 << 30


@pytest.mark.parametrize("repeats", [1, 2])
def test_pipeline(repeats):
    counts, temporary = compiled((("stage", 2), ("fsdp", 2)), "layered", PipelineConfig(PARTS, repeats))
    turns = PARTS * repeats + 1
    permutations = {shape: times for (kind, shape), times in counts.items() if kind == "collective-permute"}
    # The residual stream goes on to the next stage, and its gradient back.
    assert permutations.pop(f"bf16[1,2,{LENGTH},{EMBED}]") == 2 * turns
    # What else is rearranged is small.
    assert all(math.prod(map(int, re.findall(r"\d+", shape.split("[")[1]))) < EMBED * MLP for shape in permutations)
    if repeats == 1:
        # Forward and backward, the layers of a stage once each.
        assert elements_gathered(counts) <= 2 * LAYERS // 2 * KERNELS
        assert temporary < 3 << 30
