"""What a step of long rows holds: nothing of the size of a row times a device's part of it. And what it refuses."""

import functools
import re

import jax
import numpy as np
import pytest

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError
from t5x_scale.layers.attention import Attention
from t5x_scale.layers.positions import RelativePositions
from t5x_scale.models.blocks import SerialBlock
from t5x_scale.models.decoder import Decoder
from t5x_scale.models.interface import DecoderModel
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program
from t5x_scale.step import StepConfig

LENGTH, DEVICES = 32768, 8
PACKED = (*fields.REQUIRED, fields.SEGMENT_IDS, fields.POSITIONS)


def make_runtime(numerics, model, **options):
    mesh = MeshConfig(fsdp=1, context=DEVICES)
    return Program(model, numerics.OPTIMIZERS["adamw"], mesh, rules.context(), StepConfig(**options)).make()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_step_of_32k_tokens(numerics, remat):
    runtime = make_runtime(numerics, numerics.make_model("serial", remat))
    args = runtime.abstract_state, runtime.abstract_batch(1, LENGTH, PACKED), runtime.make_record(1)
    compiled = runtime.train_step.lower(*args).compile(numerics.FAST)
    text = compiled.as_text()
    assert "collective-permute" in text
    part = LENGTH // DEVICES
    shapes = {tuple(map(int, sizes.split(","))) for sizes in re.findall(r"\w\d+\[([\d,]+)\]", text)}
    assert (1, part, 16) in shapes
    assert not [shape for shape in shapes if sum(size >= part for size in shape) > 1]
    # Among other things masks, were they made in front of the loop over layers.
    assert not [shape for shape in shapes if np.prod(shape, dtype=np.int64) >= part * part / 2]
    assert compiled.memory_analysis().temp_size_in_bytes < part * part * 4


def test_lengths_that_do_not_divide_are_refused_before_anything_is_compiled(numerics):
    runtime = make_runtime(numerics, numerics.make_model("serial"))
    with pytest.raises(UserError, match="rows of 40 tokens do not divide over context=8 in zigzag order"):
        runtime.check_batch_size(8, 40)
    make_runtime(numerics, numerics.make_model("serial"), context_order="contiguous").check_batch_size(8, 40)
    with pytest.raises(UserError, match="rows of 40 tokens"):
        runtime.eval_step.lower(runtime.abstract_params, runtime.abstract_batch(8, 40))


def test_evaluation_and_relative_positions(numerics):
    """Sums of whole batches and of single rows; relative positions do without the ring."""
    for attention in (Attention, functools.partial(Attention, positions=RelativePositions)):
        block = functools.partial(SerialBlock, attention=attention)
        model = DecoderModel(numerics.CONFIG, functools.partial(Decoder, block=block))
        params = jax.jit(model.init, compiler_options=numerics.FAST)(jax.random.key(0))
        batch = {name: np.tile(x, (1, 4))[:, :32] for name, x in numerics.BATCHES[0].items()}
        batch = {name: batch[name] for name in fields.REQUIRED}
        single = Program(model, mesh=MeshConfig(fsdp=1)).make(jax.devices()[:1])
        runtime = make_runtime(numerics, model)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, runtime.abstract_params)
        placed = jax.device_put(params, shardings), jax.device_put(batch, runtime.batch_sharding)
        for name in ("eval_step", "row_eval_step"):
            expected = getattr(single, name)(jax.device_put(params, jax.devices()[0]), batch)
            for got, other in zip(getattr(runtime, name)(*placed), expected, strict=True):
                np.testing.assert_allclose(got, other, rtol=2e-6)
