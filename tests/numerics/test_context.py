"""Rows split over devices, in either order, give the losses of one device: both blocks, packed, causal and prefixed."""

import jax
import numpy as np
import pytest

from t5x_scale.core import batch as fields
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.axes import MESH_AXES
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program
from t5x_scale.step import StepConfig

TOLERANCE = 5e-5
MESHES = {
    "one": (MeshConfig(fsdp=1), rules.context()),
    "context=2": (MeshConfig(fsdp=1, context=2), rules.context()),
    "context=4": (MeshConfig(fsdp=1, context=4), rules.context()),
    "fsdp=2 model=2 context=2": (MeshConfig(fsdp=2, model=2, context=2), rules.context()),
    "data=2 model=2 context=2": (MeshConfig(data=2, fsdp=1, model=2, context=2), rules.context()),
    "sequence: fsdp=2 model=2 context=2": (MeshConfig(fsdp=2, model=2, context=2), rules.sequence()),
}
OPTIMIZERS = {"parallel": "palm_adafactor", "serial": "adamw", "experts": "adamw"}
_RECORDS = {}


def with_prefixes(batches, length):
    """A prefix in each packed document; 16 tokens a row, which 2 x 4 pieces divide."""
    rng = np.random.default_rng(3)
    result = []
    for batch in batches:
        cut = np.argmax(batch[fields.SEGMENT_IDS] == 2, axis=1)[:, None]
        position = np.arange(length)
        prefix = (position < rng.integers(0, cut + 1)) | ((position >= cut) & (position < rng.integers(cut, length)))
        result.append({**batch, fields.PREFIX: prefix.astype(np.int32)})
    return result


def lengthened(batches):
    """[B, 16]: the rows' first tokens once more, as part of the second document."""
    return [
        {
            name: np.concatenate([x, x[:, :4] + (12 if name == fields.POSITIONS else 0)], axis=1)
            if name != fields.SEGMENT_IDS
            else np.concatenate([x, np.full_like(x[:, :4], 2)], axis=1)
            for name, x in batch.items()
        }
        for batch in batches
    ]


def train(numerics, block, mesh, prefixed, order="zigzag", **options):
    key = (block, mesh, prefixed, order, *options)
    if key in _RECORDS:
        return _RECORDS[key]
    batches = lengthened(numerics.BATCHES)
    batches = with_prefixes(batches, 16) if prefixed else batches
    (config, table), optimizer = MESHES[mesh], numerics.OPTIMIZERS[OPTIMIZERS[block]]
    step = StepConfig(loss_chunk_length=5, context_order=order, **options)
    program = Program(numerics.make_model(block), optimizer, config, table, step)
    runtime = program.make(jax.devices()[: np.prod([getattr(config, axis) for axis in MESH_AXES])])
    shardings = jax.tree.map(lambda leaf: leaf.sharding, runtime.abstract_state)
    state = jax.device_put(numerics.initial_state(block, OPTIMIZERS[block]), shardings)
    record, compiled = runtime.make_record(numerics.STEPS), None
    for batch in batches:
        batch = jax.device_put(batch, runtime.batch_sharding)
        compiled = compiled or runtime.train_step.lower(state, batch, record).compile(numerics.FAST)
        state, record = compiled(state, batch, record)
    return _RECORDS.setdefault(key, np.asarray(record))


LAYERED = {"accumulation": "layered", "micro_batches": 2}


@pytest.mark.parametrize(
    ("block", "mesh", "prefixed", "order", "options"),
    [
        ("parallel", "context=4", True, "zigzag", {}),
        ("parallel", "context=2", False, "contiguous", {}),
        ("parallel", "fsdp=2 model=2 context=2", False, "zigzag", {}),
        ("parallel", "data=2 model=2 context=2", True, "zigzag", {}),
        ("parallel", "sequence: fsdp=2 model=2 context=2", False, "zigzag", {}),
        ("serial", "context=2", True, "contiguous", {"micro_batches": 2}),
        ("serial", "context=4", False, "zigzag", {"micro_batches": 2}),
        ("serial", "fsdp=2 model=2 context=2", True, "zigzag", LAYERED),
        ("experts", "context=2", False, "zigzag", {}),
    ],
)
def test_the_losses_are_those_of_one_device(numerics, block, mesh, prefixed, order, options):
    expected = train(numerics, block, "one", prefixed)
    assert expected[:3, 0].mean() - expected[-3:, 0].mean() > 0.1
    got = train(numerics, block, mesh, prefixed, order, **options)
    np.testing.assert_allclose(got[:, :2], expected[:, :2], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(got[:, 3], expected[:, 3])
    np.testing.assert_allclose(got[:, 5], expected[:, 5], rtol=1e-3)


def test_the_prefix_counts(numerics):
    """Otherwise the comparison above would say nothing of it."""
    causal, prefixed = (train(numerics, "serial", "one", prefixed) for prefixed in (False, True))
    assert np.abs(causal[:, 0] - prefixed[:, 0]).max() > 1e-3
