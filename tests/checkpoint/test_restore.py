"""Starting from the parameters of another run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_scale.checkpoint import multihost
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.restore import restore_parameters
from t5x_scale.core.errors import UserError

KERNEL = np.random.default_rng(0).normal(size=(2, 8, 4)).astype(np.float32)


@pytest.fixture
def model_dir(tmp_path):
    params = {"decoder": {"layers": {"kernel": jnp.asarray(KERNEL)}, "scale": jnp.arange(4.0)}}
    with CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1)) as manager:
        for step in (1, 2):
            state = {"params": jax.tree.map(lambda x, step=step: x * step, params), "opt_state": jnp.zeros(3)}
            manager.save(step, state, {})
    return tmp_path


def make_abstract(kernel_dtype=jnp.float32, **extra):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    kernel = jax.ShapeDtypeStruct((2, 8, 4), kernel_dtype, sharding=NamedSharding(mesh, P(None, "x")))
    scale = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=NamedSharding(mesh, P()))
    return {"decoder": {"layers": {"kernel": kernel}, "scale": scale, **extra}}


@pytest.mark.parametrize(("name", "factor"), [("", 2), ("checkpoints", 2), ("checkpoints/1", 1)])
def test_parameters_of_every_name_a_user_may_give(model_dir, name, factor):
    params, report = restore_parameters(model_dir / name, make_abstract())
    kernel = params["decoder"]["layers"]["kernel"]
    np.testing.assert_array_equal(np.asarray(kernel), KERNEL * factor)
    assert kernel.sharding == make_abstract()["decoder"]["layers"]["kernel"].sharding
    assert report.step == factor
    assert [leaf.origin.source for leaf in report.leaves] == ["params/decoder/layers/kernel", "params/decoder/scale"]


def test_a_cast_is_made_as_asked_and_reported(model_dir):
    params, report = restore_parameters(model_dir, make_abstract(jnp.bfloat16))
    kernel = params["decoder"]["layers"]["kernel"]
    np.testing.assert_array_equal(np.asarray(kernel), (KERNEL * 2).astype(jnp.bfloat16))
    assert kernel.sharding == make_abstract()["decoder"]["layers"]["kernel"].sharding
    text = report.render()
    assert text.startswith(f"from {model_dir}/checkpoints/2\n")
    assert "2x8x4  bfloat16  restored from params/decoder/layers/kernel (cast float32 to bfloat16)" in text
    assert text.count("(cast ") == 1
    assert text.endswith("\n2 tensors, 68 elements: 2 restored\n")


def test_a_missing_or_unexpected_parameter_is_an_error_with_the_nearest_name(model_dir):
    abstract = make_abstract(bias=jax.ShapeDtypeStruct((4,), jnp.float32))
    with pytest.raises(UserError, match="has no parameter 'decoder/bias', which the model needs"):
        restore_parameters(model_dir, abstract)
    abstract = make_abstract()
    abstract["decoder"]["scales"] = abstract["decoder"].pop("scale")
    with pytest.raises(UserError, match=r"has no parameter 'decoder/scales'.*did you mean 'decoder/scale'"):
        restore_parameters(model_dir, abstract)
    del abstract["decoder"]["scales"]
    with pytest.raises(UserError, match="has the parameter 'decoder/scale', which the model does not know"):
        restore_parameters(model_dir, abstract)


def test_a_checkpoint_without_parameters_says_so(tmp_path):
    with CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1)) as manager:
        manager.save(1, {"param": jnp.zeros(3)}, {})
    with pytest.raises(UserError, match=r"holds no 'params' \(did you mean 'param'\?\)"):
        restore_parameters(tmp_path, {"a": jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_parameters_are_verified(model_dir):
    for path in (model_dir / "checkpoints" / "2" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[::-1])
    _, report = restore_parameters(model_dir, make_abstract())
    assert report.step == 1
    with pytest.raises(UserError, match="can be trusted: step 2"):
        restore_parameters(model_dir / "checkpoints" / "2", make_abstract())


def test_processes_read_the_steps_of_the_first(model_dir, monkeypatch):
    listed = []
    # Process 0 listed the directory before step 2 was there.
    monkeypatch.setattr(multihost, "share_steps", lambda steps: listed.append(steps) or [1])
    _, report = restore_parameters(model_dir, make_abstract())
    assert report.step == 1
    assert listed == [[1, 2]]


def test_a_checkpoint_that_another_process_does_not_see_stops_all(model_dir, monkeypatch):
    seen = UserError("it does not exist (process 1 of 2)")
    monkeypatch.setattr(multihost, "share_error", lambda error: error or seen)
    with pytest.raises(UserError, match="process 1 of 2"):
        restore_parameters(model_dir, make_abstract())
    with pytest.raises(UserError, match="does not exist"):
        restore_parameters(model_dir / "absent", make_abstract())
