"""Saving, keeping, falling back and refusing."""

import logging
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_scale.checkpoint import integrity, layout
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.core.errors import UserError

EVERY = CheckpointConfig(save_every_steps=1, keep=None)


def make_mesh(shape=(4, 2)):
    return jax.make_mesh(shape, ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def make_state(step=1, mesh=None, spec=None):
    sharding = NamedSharding(mesh or make_mesh(), spec or P("x", "y"))
    replicated = NamedSharding(sharding.mesh, P())
    kernel = np.random.default_rng(step).normal(size=(16, 32)).astype(np.float32)
    return {
        "step": jax.device_put(np.int32(step), replicated),
        "params": {"mlp": {"kernel": jax.device_put(kernel, sharding)}, "scale": jnp.full((4,), step, jnp.bfloat16)},
        "opt_state": ({"mu": jax.device_put(kernel * 2, sharding)}, ()),
    }


def make_abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save_steps(directory, steps, config=EVERY):
    with CheckpointManager(directory, config) as manager:
        for step in steps:
            assert manager.save(step, make_state(step), {"row": 8 * step})


def data_files(directory, step):
    return [path for path in pathlib.Path(directory, "checkpoints", str(step), "state").rglob("d/*") if path.is_file()]


def damage(directory, step):
    """Flips bytes in every data file; the largest part of them is array content."""
    for path in data_files(directory, step):
        data = bytearray(path.read_bytes())
        for position in range(len(data) // 3, len(data), 97):
            data[position] ^= 0x10
        path.write_bytes(bytes(data))


def assert_equal(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), left, right)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_round_trip_into_another_mesh(tmp_path, asynchronous):
    config = CheckpointConfig(save_every_steps=5, asynchronous=asynchronous)
    state = make_state(5)
    with CheckpointManager(tmp_path, config) as manager:
        assert manager.save(5, state, {"row": 40})
    other = make_abstract(make_state(0, make_mesh((2, 4)), P("y", None)))
    restored = CheckpointManager(tmp_path).restore(other)
    assert_equal(restored.state, state)
    assert (restored.step, restored.metadata["row"]) == (5, 40)
    assert restored.metadata["environment"]["device_count"] == jax.device_count()
    assert restored.state["params"]["mlp"]["kernel"].sharding == other["params"]["mlp"]["kernel"].sharding
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert restored.fingerprints == integrity.fingerprints(state)


def test_only_due_steps_are_saved_unless_forced(tmp_path):
    with CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=5)) as manager:
        assert manager.latest() is None
        saved = [step for step in range(13) if manager.save(step, make_state(step), {})]
        assert saved == [5, 10]
        assert manager.save(12, make_state(12), {}, force=True)
        assert not manager.save(12, make_state(12), {}, force=True), "the step is saved already"
        manager.wait()
        assert manager.steps() == [5, 10, 12]
        assert manager.latest() == 12


def test_the_state_may_be_donated_while_it_is_being_written(tmp_path):
    advance = jax.jit(lambda state: jax.tree.map(lambda x: x * 3 + 1, state), donate_argnums=0)
    state, expected = make_state(1), {}
    with CheckpointManager(tmp_path, EVERY) as manager:
        for step in range(1, 6):
            expected[step] = integrity.fingerprints(state)
            manager.save(step, state, {})
            state = advance(state)
    for step, fingerprints in expected.items():
        restored = CheckpointManager(tmp_path).restore(make_abstract(make_state()), step=step)
        assert integrity.fingerprints(restored.state) == fingerprints


def test_policy_keeps_the_newest_and_the_multiples(tmp_path):
    save_steps(tmp_path, range(1, 9), CheckpointConfig(save_every_steps=1, keep=2, keep_every_steps=3))
    assert CheckpointManager(tmp_path).steps() == [3, 6, 7, 8]


@pytest.mark.parametrize(
    "bad",
    [
        {"save_every_steps": -1},
        {"keep": 0},
        {"keep_every_steps": 0},
        {"save_every_seconds": 0},
        {"check_time_every_steps": 0},
        {"max_failed_saves": 0},
        {"local_every_steps": 0},
        {"local_directory": "gs://bucket/run"},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        CheckpointConfig(**bad)


def test_flipped_bytes_fall_back_loudly(tmp_path, caplog):
    save_steps(tmp_path, [1, 2, 3])
    damage(tmp_path, 3)
    with caplog.at_level(logging.WARNING):
        restored = CheckpointManager(tmp_path).restore(make_abstract(make_state()))
    assert restored.step == 2
    assert_equal(restored.state, make_state(2))
    assert "step 3" in caplog.text
    assert "Falling back to step 2" in caplog.text


@pytest.mark.parametrize("victim", ["arrays", "array_metadata", "metadata", "metadata_missing", "swapped_metadata"])
def test_every_kind_of_damage_falls_back(tmp_path, victim):
    save_steps(tmp_path, [1, 2])
    newest = tmp_path / "checkpoints" / "2"
    if victim == "arrays":
        for path in data_files(tmp_path, 2):
            os.truncate(path, path.stat().st_size // 2)
    elif victim == "array_metadata":
        (newest / "state" / "manifest.ocdbt").unlink()
        (newest / "state" / "_METADATA").write_text("{")
    elif victim == "metadata":
        (newest / "metadata" / "metadata").write_text("{}")
    elif victim == "metadata_missing":
        (newest / "metadata" / "metadata").unlink()
    else:
        (newest / "metadata" / "metadata").write_bytes(
            (tmp_path / "checkpoints" / "1" / "metadata" / "metadata").read_bytes()
        )
    assert CheckpointManager(tmp_path).restore(make_abstract(make_state())).step == 1


def test_fingerprints_catch_what_the_storage_format_does_not(tmp_path):
    """Arrays of another step under a document of this one: everything parses, nothing is right."""
    save_steps(tmp_path, [1, 2])
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "2" / "state").rename(tmp_path / "unused")
    (checkpoints / "1" / "state").rename(checkpoints / "2" / "state")
    with pytest.raises(UserError, match=r"no checkpoint .* can be trusted: step 2: \d of 4 leaves lost their bits"):
        CheckpointManager(tmp_path).restore(make_abstract(make_state()))


def test_when_nothing_verifies_every_step_is_named_and_nothing_is_deleted(tmp_path):
    save_steps(tmp_path, [1, 2])
    for step in (1, 2):
        damage(tmp_path, step)
    with pytest.raises(UserError, match=r"can be trusted: step 2: .*; step 1: "):
        CheckpointManager(tmp_path).restore(make_abstract(make_state()))
    assert CheckpointManager(tmp_path).steps() == [1, 2]


def test_a_step_asked_for_is_never_replaced_by_another(tmp_path):
    save_steps(tmp_path, [1, 2])
    damage(tmp_path, 2)
    abstract = make_abstract(make_state())
    with pytest.raises(UserError, match="step 2"):
        CheckpointManager(tmp_path).restore(abstract, step=2)
    with pytest.raises(UserError, match="no checkpoint of step 7; it has 2, 1"):
        CheckpointManager(tmp_path).restore(abstract, step=7)
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        CheckpointManager(tmp_path / "empty").restore(abstract)


def test_a_state_of_another_shape_is_refused_before_anything_is_read(tmp_path):
    save_steps(tmp_path, [1, 2])
    for path in data_files(tmp_path, 2):
        path.unlink()
    abstract = make_abstract(make_state())
    kernel = abstract["params"]["mlp"].pop("kernel")
    with pytest.raises(UserError, match="'params/mlp/kernel', which this run does not know"):
        CheckpointManager(tmp_path).restore(abstract)
    abstract["params"]["mlp"]["kernels"] = kernel
    with pytest.raises(UserError, match=r"no leaf 'params/mlp/kernels'.*did you mean 'params/mlp/kernel'"):
        CheckpointManager(tmp_path).restore(abstract)


def test_leftovers_of_a_killed_save_are_ignored_and_cleared_by_the_next_save(tmp_path):
    save_steps(tmp_path, [1])
    checkpoints = tmp_path / "checkpoints"
    for name in ("2.orbax-checkpoint-tmp", "2.orbax-checkpoint-tmp-123", "0.deleting"):
        (checkpoints / name / "state").mkdir(parents=True)
    manager = CheckpointManager(tmp_path, EVERY)
    assert manager.restore(make_abstract(make_state())).step == 1
    assert (checkpoints / "0.deleting").exists(), "reading must not touch the directory of a run that may be writing"
    manager.save(2, make_state(2), {})
    manager.close()
    assert sorted(path.name for path in checkpoints.iterdir()) == ["1", "2"]


def test_a_run_that_went_back_sets_the_abandoned_steps_aside(tmp_path, caplog):
    save_steps(tmp_path, [1, 2, 3])
    damage(tmp_path, 3)
    with CheckpointManager(tmp_path, EVERY) as manager:
        assert manager.restore(make_abstract(make_state())).step == 2
        assert manager.steps() == [1, 2, 3], "restoring alone changes nothing"
        assert not manager.save(2, make_state(2), {}), "it is there already"
        assert manager.save(3, make_state(30), {})
    assert "setting" in caplog.text
    assert (tmp_path / "checkpoints" / "3.set_aside").exists()
    restored = CheckpointManager(tmp_path).restore(make_abstract(make_state()))
    assert_equal(restored.state, make_state(30))


def test_the_steps_of_another_run_are_not_overwritten(tmp_path):
    save_steps(tmp_path, [1, 5])
    with pytest.raises(UserError, match="already holds step 5 of another run"):
        CheckpointManager(tmp_path, EVERY).save(2, make_state(2), {})
    assert_equal(CheckpointManager(tmp_path).restore(make_abstract(make_state())).state, make_state(5))


def test_metadata_can_be_read_alone(tmp_path):
    save_steps(tmp_path, [1])
    assert CheckpointManager(tmp_path).read_metadata(1)["row"] == 8
    (tmp_path / "checkpoints" / "1" / layout.METADATA_ITEM / "metadata").write_text("")
    with pytest.raises(layout.DamagedError, match="its metadata cannot be read: it is no JSON"):
        CheckpointManager(tmp_path).read_metadata(1)
