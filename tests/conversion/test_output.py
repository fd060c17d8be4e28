"""What a conversion writes can be opened again, whole; what was interrupted is not there."""

import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import small_tokenizers
from toy import FAMILIES, make_weights, read

from t5x_scale.checkpoint.restore import restore_parameters
from t5x_scale.conversion.output import write_checkpoint
from t5x_scale.conversion.sources import open_source
from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.core.leaves import Origin
from t5x_scale.core.trees import flatten, unflatten
from t5x_scale.models.weights import cast_weights

MOMENTS = ("opt_state/0/mu", "opt_state/0/nu")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_written_is_opened_again(tmp_path, family):
    weights = make_weights(FAMILIES[family], moments=MOMENTS).replace(
        tokenizer={"tokenizer.model": small_tokenizers.sentencepiece_model()},
        recipe=({"surgery": "DepthUpscale", "num_removed": 1},),
        dropped={"old/kernel": Origin("dropped", "old/kernel", "by hand")},
    )
    assert write_checkpoint(tmp_path / "new", weights, source="a test") == tmp_path / "new"
    source = open_source(str(tmp_path / "new"))
    again = source.weights
    assert (source.kind, again.architecture) == ("t5x_scale", weights.architecture)
    assert (again.tokenizer, again.recipe) == (weights.tokenizer, weights.recipe)
    assert {path: leaf.axes for path, leaf in again.leaves.items()} == {
        path: leaf.axes for path, leaf in weights.leaves.items()
    }
    pairs = [(again.leaves, weights.leaves), (again.counters, weights.counters)]
    pairs += [(again.moments[slot], weights.moments[slot]) for slot in MOMENTS]
    for found, expected in pairs:
        assert found.keys() == expected.keys()
        for path, values in read(expected).items():
            np.testing.assert_array_equal(found[path].array.read(), values)
    report = (tmp_path / "new" / "origin.txt").read_text()
    assert all(path in report for path in weights.leaves)
    assert "dropped from old/kernel (by hand)" in report
    assert "MODEL" in (tmp_path / "new" / "model.gin").read_text()


def test_a_run_begins_from_it_on_a_mesh(tmp_path):
    weights = make_weights(FAMILIES["llama"], dtype=lazy.to_dtype("bfloat16"))
    write_checkpoint(tmp_path / "new", weights, source="a test")
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "a"))
    abstract = {}
    for path, leaf in weights.leaves.items():
        place = (
            sharding if leaf.array.ndim > 2 and leaf.shape[1] % 4 == 0 else jax.sharding.NamedSharding(mesh, jax.P())
        )
        abstract[path] = jax.ShapeDtypeStruct(leaf.shape, np.float32, sharding=place)
    params, report = restore_parameters(tmp_path / "new", unflatten(abstract))
    assert report.step == 0
    for path, array in flatten(params).items():
        np.testing.assert_array_equal(np.asarray(array), weights.leaves[path].array.read().astype(np.float32))


def test_parameters_can_be_cast_and_moments_stay(tmp_path):
    weights = make_weights(FAMILIES["palm"], moments=MOMENTS)
    write_checkpoint(tmp_path / "new", cast_weights(weights, "bfloat16"), source="a test")
    again = open_source(str(tmp_path / "new")).weights
    assert {str(leaf.array.dtype) for leaf in again.leaves.values()} == {"bfloat16"}
    assert {str(leaf.array.dtype) for leaf in again.moments[MOMENTS[0]].values()} == {"float32"}


def test_what_float16_cannot_hold_is_named(tmp_path):
    weights = make_weights(FAMILIES["palm"])
    path = "decoder/layers/pre_norm/scale"
    large = weights.leaves[path].changed(lazy.full(weights.leaves[path].shape, "float32", 70000), "scaled")
    weights = weights.replace(leaves={**weights.leaves, path: large})
    with pytest.raises(UserError, match=f"the parameter '{path}' has numbers beyond float16's 65504"):
        write_checkpoint(tmp_path / "new", cast_weights(weights, "float16"), source="a test")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes").write_text("mine")
    with pytest.raises(UserError, match="nothing is overwritten"):
        write_checkpoint(tmp_path / "new", make_weights(FAMILIES["llama"]), source="a test")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "notes"]


def test_a_tensor_that_cannot_be_read_leaves_nothing(tmp_path):
    weights = make_weights(FAMILIES["llama"])
    leaf = weights.leaves["logits/kernel"]

    def fail(region):
        raise UserError("the source went away")

    broken = leaf.changed(lazy.LazyArray(leaf.shape, leaf.array.dtype, fail), "scaled")
    with pytest.raises(UserError, match="the source went away"):
        write_checkpoint(
            tmp_path / "new", weights.replace(leaves={**weights.leaves, "logits/kernel": broken}), source="a test"
        )
    assert list(tmp_path.iterdir()) == []


SLOW = """
import sys, time
sys.path.insert(0, {surgery!r})
from toy import FAMILIES, make_weights
from t5x_scale.conversion.output import write_checkpoint
from t5x_scale.core import lazy
weights = make_weights(FAMILIES["llama"])
leaf = weights.leaves["logits/kernel"]
def read(region):
    print("reading", flush=True)
    time.sleep(60)
    return leaf.array.read(region)
slow = leaf.changed(lazy.LazyArray(leaf.shape, leaf.array.dtype, read), "scaled")
write_checkpoint({output!r}, weights.replace(leaves={{**weights.leaves, "logits/kernel": slow}}), source="a test")
"""


def test_a_killed_conversion_leaves_nothing_that_looks_finished_and_the_next_one_works(tmp_path):
    output = tmp_path / "new"
    surgery = str(pathlib.Path(__file__).parents[1] / "surgery")
    program = SLOW.format(surgery=surgery, output=str(output))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "reading\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    for left in tmp_path.iterdir():
        with pytest.raises(UserError):
            open_source(str(left))
    write_checkpoint(output, make_weights(FAMILIES["llama"]), source="a test")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_source(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"holds no finished checkpoint.*nor is it a Hugging Face directory"):
        open_source(str(tmp_path))


def test_rotten_bytes_are_found(tmp_path):
    write_checkpoint(tmp_path / "new", make_weights(FAMILIES["llama"]), source="a test")
    payload = max((tmp_path / "new" / "checkpoints").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 0x10
    payload.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"no checkpoint in .* can be trusted"):
        open_source(str(tmp_path / "new"))


def test_what_rots_after_it_was_verified_is_one_line(tmp_path):
    write_checkpoint(tmp_path / "new", make_weights(FAMILIES["llama"]), source="a test")
    # Unverified, so that no chunk is in a cache.
    weights = open_source(str(tmp_path / "new"), verify=False).weights
    state = tmp_path / "new" / "checkpoints" / "0" / "state"
    for chunk in (state / "params.logits.kernel").glob("[0-9]*"):
        chunk.unlink()
    with pytest.raises(UserError, match=r"went bad while it was read: .*logits/kernel"):
        write_checkpoint(tmp_path / "again", weights, source="a test")
    assert not (tmp_path / "again").exists()
