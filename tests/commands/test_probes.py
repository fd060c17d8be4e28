"""The probe of a run on a mesh: a planted difference is found and named, and a sound run passes."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from t5x_scale.commands.training.memory_errors import explained
from t5x_scale.commands.training.probes import Probes
from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder
from t5x_scale.models.interface import DecoderModel
from t5x_scale.monitor.corruption import ProbeConfig
from t5x_scale.monitor.health import Health, HealthConfig
from t5x_scale.monitor.metric_log import read_metrics
from t5x_scale.monitor.writers import MetricWriters
from t5x_scale.optim import schedules
from t5x_scale.optim.palm_adafactor import PalmAdafactor
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program
from t5x_scale.step import StepConfig

CONFIG = ModelConfig(
    num_layers=2, embed_dim=8, mlp_dim=16, num_heads=4, num_kv_heads=1, head_dim=4, vocab_size=12, dtype="float32"
)
PROGRAM = Program(
    DecoderModel(CONFIG, Decoder),
    PalmAdafactor(schedules.Constant(0.01)),
    MeshConfig(data=2, fsdp=2, model=2),
    rules.fsdp_model(),
    StepConfig(loss_chunk_length=4),
)


@functools.cache
def runtime():
    return PROGRAM.make()


@functools.cache
def state():
    return runtime().init_state()


def make_batch():
    values = {name: np.ones((8, 8), fields.DTYPES[name]) for name in fields.REQUIRED}
    return {name: jax.device_put(value, runtime().batch_sharding) for name, value in values.items()}


@pytest.fixture
def probe(tmp_path):
    """Probes a state; returns the differences on record."""

    def run(given, stop=False, program=None):
        health = Health(tmp_path, HealthConfig(probe=ProbeConfig(every_steps=5, stop=stop)))
        with MetricWriters(tmp_path) as writers:
            probes = Probes(program or runtime(), health, writers)
            assert [step for step in range(12) if probes.is_due(step)] == [5, 10]
            probes.run(5, given, make_batch())
        (event,) = read_metrics(tmp_path).events
        return event["differences"]

    return run


def with_a_flipped_bit(array, device):
    """The same array, but for one bit of the shard on one device."""
    shards = []
    for shard in array.addressable_shards:
        data = np.array(shard.data)
        if shard.device == device:
            data.reshape(-1).view(np.uint32)[0] ^= 1
        shards.append(jax.device_put(data, SingleDeviceSharding(shard.device)))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


def test_a_sound_run(probe):
    assert probe(state(), stop=True) == []


def test_a_copy_that_has_lost_a_bit(probe, caplog):
    device = runtime().mesh.devices.flat[5]
    damaged = jax.tree.map(lambda leaf: leaf, state())
    norm = damaged.params["decoder"]["final_norm"]["scale"]
    damaged.params["decoder"]["final_norm"]["scale"] = with_a_flipped_bit(norm, device)
    (difference,) = [each for each in probe(damaged) if each["kind"] == "copies"]
    assert difference["devices"] == [device.id]
    assert difference["arrays"] == ["params/decoder/final_norm/scale"]
    assert (
        f"silent data corruption: copies of the same values differ between devices on device {device.id}" in caplog.text
    )


class Miscounting:
    """A runtime whose gradients differ at the second time."""

    def __init__(self):
        self.calls = 0

    def __getattr__(self, name):
        return getattr(runtime(), name)

    def gradient_prints(self, params, batch):
        self.calls += 1
        prints = np.array(runtime().gradient_prints(params, batch))
        prints[2, 1, 0] ^= self.calls == 2
        return prints


def test_gradients_that_differ_stop_the_run_where_it_is_told_to(probe):
    device = runtime().mesh.devices.flat[2].id
    with pytest.raises(
        UserError, match=rf"stopped at step 5: computing the same gradients twice .* device {device}, in"
    ):
        probe(state(), stop=True, program=Miscounting())


def test_gradients_that_differ_are_said(probe):
    (difference,) = probe(state(), program=Miscounting())
    assert difference["kind"] == "gradients"


def test_the_prints_are_those_of_the_gradients():
    """Another bit in the batch gives other prints; nothing is donated."""
    batch = make_batch()
    first = np.asarray(runtime().gradient_prints(state().params, batch))
    assert first.shape == (8, 1 + len(jax.tree.leaves(state().params)), 2)
    batch[fields.TARGET_TOKENS] = batch[fields.TARGET_TOKENS].at[0, 0].set(3)
    other = np.asarray(runtime().gradient_prints(state().params, batch))
    assert (first != other).any(axis=(0, 2)).all()


class Source:
    schedule, length = BatchSchedule(((0, 8),)), 8


def test_out_of_memory_is_explained(capsys):
    with pytest.raises(UserError, match=r"out of memory: a step of 8 x 8 tokens does not fit.*see above"):  # noqa: SIM117
        with explained(runtime(), Source()):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes.")
    said = capsys.readouterr().err
    assert "What the compiler counts for a step of 8 x 8 tokens, on each device:" in said
    assert "GiB  temporaries: activations, gradients" in said
    assert "StepConfig.micro_batches=2" in said


def test_other_errors_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explained(runtime(), Source()):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
