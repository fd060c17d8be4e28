"""The TPU compiler takes steps in pipelines and with layered accumulation."""

import functools

import pytest

from t5x_scale.models.blocks import ParallelBlock
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

PARTS = 8
CONFIG = ModelConfig(
    num_layers=8, embed_dim=1024, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=128, vocab_size=32768
)


def compiled_text(sizes, accumulation, pipeline=None):
    """The program of a step of 32 x 1024 tokens on four chips of v5p, in bfloat16, with full remat."""
    model = DecoderModel(CONFIG, functools.partial(Decoder, block=ParallelBlock, remat="full"))
    step = StepConfig(1 if pipeline else PARTS, accumulation, pipeline)
    table = rules.pipeline() if pipeline else rules.fsdp_model()
    program = Program(model, AdamW(schedules.Constant(1e-3)), MeshConfig(**sizes), table, step)
    return program.make(topology_devices("v5p:2x2x1")).compile_step(32, 1024, 1).as_text()


def test_layered_accumulation():
    assert "all-gather" in compiled_text({"fsdp": 4}, "layered")


@pytest.mark.parametrize("repeats", [1, 2])
def test_pipeline(repeats):
    text = compiled_text({"stage": 2, "fsdp": 2}, "layered", PipelineConfig(PARTS, repeats))
    assert "collective-permute" in text
