"""Rows of 128k tokens on a v5p slice: the step fits, and keys travel while they are attended to."""

import functools
import re

import pytest

from t5x_scale.core import batch as fields
from t5x_scale.models.blocks import SerialBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder, Head
from t5x_scale.models.interface import DecoderModel
from t5x_scale.optim import schedules
from t5x_scale.optim.adamw import AdamW
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.topologies import topology_devices
from t5x_scale.program import Program

LENGTH, LAYERS = 131072, 2
# Llama 3.1 8B but for its depth. A further layer adds its input and 1/64 of its parameters, gradients and moments.
SHAPES = ModelConfig(
    num_layers=LAYERS, embed_dim=4096, mlp_dim=14336, num_heads=32, num_kv_heads=8, head_dim=128, vocab_size=128256
)
NAMES = (*fields.REQUIRED, fields.SEGMENT_IDS, fields.POSITIONS, fields.PREFIX)
HBM = 95e9


@pytest.fixture(scope="module")
def compiled():
    model = DecoderModel(SHAPES, functools.partial(Decoder, block=SerialBlock, head=Head, remat="full"))
    mesh = MeshConfig(fsdp=4, context=16)
    runtime = Program(model, AdamW(schedules.Constant(1e-3)), mesh, rules.context()).make(topology_devices("v5p:4x4x4"))
    return runtime.compile_step(4, LENGTH, 1, NAMES)


def test_fits_with_all_32_layers(compiled):
    memory = compiled.memory_analysis()
    layer_input = 2 * LENGTH // 16 * SHAPES.embed_dim
    of_layer = 16 * 218e6 / 64 + layer_input
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes + (32 - LAYERS) * of_layer < HBM / 2


def test_nothing_is_a_row_times_a_part_of_it(compiled):
    entry_and_loops = re.sub(r"^%?fused_computation.*?^}", "", compiled.as_text(), flags=re.MULTILINE | re.DOTALL)
    shapes = {tuple(map(int, sizes.split(","))) for sizes in re.findall(r"\w\d+\[([\d,]+)\]", entry_and_loops)}
    features = (SHAPES.mlp_dim, SHAPES.vocab_size)
    assert not [s for s in shapes if sum(size >= LENGTH // 16 and size not in features for size in s) > 1]


def test_keys_travel_behind_attention(compiled):
    """In each loop around the ring permutes begin in front of the work that is skipped or done, and end behind it."""
    loops = re.findall(r"^%?[\w.]+ \(.*?^}", compiled.as_text(), flags=re.MULTILINE | re.DOTALL)
    rings = [text for text in loops if "collective-permute-start(" in text and " conditional(" in text]
    # Forward, again in the backward pass, and the backward pass itself.
    assert len(rings) == 3
    for text in rings:
        work = text.index(" conditional(")
        keys = [match.start() for match in re.finditer(r"= \((?:bf16|f32)\[[^=]*? collective-permute-start\(", text)]
        dones = [match.start() for match in re.finditer(r"= (?:bf16|f32)\[\S* collective-permute-done\(", text)]
        assert keys
        assert max(keys) < work < min(dones)
