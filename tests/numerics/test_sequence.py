"""A residual stream that is split along its length gives the losses of one device, and is exchanged as it should be."""

import re

import jax
import numpy as np
import pytest

from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig

TOLERANCE = 5e-5


@pytest.fixture(scope="module", autouse=True)
def meshes(numerics):
    numerics.MESHES["sequence: fsdp=2 model=4"] = (8, MeshConfig(fsdp=2, model=4), rules.sequence())
    numerics.MESHES["whole experts: fsdp=2 expert=2 model=2"] = (
        8,
        MeshConfig(fsdp=2, expert=2, model=2),
        rules.expert(),
    )


@pytest.mark.parametrize(
    ("block", "optimizer", "mesh"),
    [
        ("parallel", "palm_adafactor", "sequence: fsdp=2 model=4"),
        ("serial", "adamw", "sequence: fsdp=2 model=4"),
        ("experts", "adamw", "whole experts: fsdp=2 expert=2 model=2"),
    ],
)
def test_the_losses_are_those_of_one_device(numerics, block, optimizer, mesh):
    expected, _ = numerics.train(block, optimizer)
    got, _ = numerics.train(block, optimizer, mesh)
    np.testing.assert_allclose(got[:, :2], expected[:, :2], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(got[:, 5], expected[:, 5], rtol=1e-3)


def test_what_is_saved_of_a_layer_is_split_along_the_length(numerics):
    """[layers, rows / 2, length / 4, embed] of the residual stream and nothing larger is kept for the backward pass."""
    runtime = numerics.make_runtime("serial", "adamw", "sequence: fsdp=2 model=4", remat="full")
    args = runtime.abstract_state, runtime.abstract_batch(numerics.ROWS, numerics.LENGTH), runtime.make_record(1)
    text = runtime.train_step.lower(*args).compile(numerics.FAST).as_text()
    config = numerics.CONFIG
    rows, length = numerics.ROWS // 2, numerics.LENGTH // 4
    assert f"f32[{config.num_layers},{rows},{length},{config.embed_dim}]" in text
    assert not re.search(rf"f32\[{config.num_layers},{rows},{numerics.LENGTH},\d+\]", text)
    assert jax.device_count() == 8
