"""On TPU attention's forward kernel runs again in the backward pass only where nobody keeps what it gave."""

import functools
import re

import pytest

from t5x_scale.models.blocks import SerialBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder
from t5x_scale.models.interface import DecoderModel
from t5x_scale.models.remat import Remat
from t5x_scale.optim import schedules
from t5x_scale.optim.adamw import AdamW
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.topologies import topology_devices
from t5x_scale.program import Program

CONFIG = ModelConfig(
    num_layers=4, embed_dim=512, mlp_dim=1024, num_heads=4, num_kv_heads=2, head_dim=128, vocab_size=4096
)


@pytest.mark.parametrize(
    ("remat", "runs"),
    [
        ("full", 2),
        ("attention", 1),
        ("minimal", 1),
        ("dots", 1),
        (Remat(save=("context", "mlp_up")), 1),
        (Remat(save=("query", "key", "value")), 2),
    ],
    ids=str,
)
def test_the_forward_kernel(remat, runs):
    model = DecoderModel(CONFIG, functools.partial(Decoder, block=SerialBlock, remat=remat))
    program = Program(model, AdamW(schedules.Constant(1e-3)), MeshConfig(fsdp=4), rules.fsdp_model())
    text = program.make(topology_devices("v5p:2x2x1")).compile_step(8, 512, 1).as_text()
    kernels = re.findall(r"^ *%splash_m[hq]a_(\w+?)_(?:no_)?residuals\S* = .*tpu_custom_call", text, re.MULTILINE)
    assert sorted(kernels) == ["dkv", "dq", *["fwd"] * runs]
