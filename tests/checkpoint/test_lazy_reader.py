"""Our checkpoints, region by region, in both forms, and what is said of rotten ones."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_scale.checkpoint import saving
from t5x_scale.checkpoint.layout import DamagedError
from t5x_scale.checkpoint.lazy_reader import read_lazily, verify_lazily
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.stream_writer import write_stream
from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError

KERNEL = np.random.default_rng(0).normal(size=(4, 16, 6)).astype(np.float32)


def make_state(factor=1):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    kernel = jax.device_put(KERNEL * factor, NamedSharding(mesh, P(None, "x")))
    params = {"decoder": {"layers": {"kernel": kernel}, "scale": jnp.arange(4.0, dtype=jnp.bfloat16)}}
    return {"params": params, "opt_state": ({"count": jnp.int32(factor)},), "step": jnp.int32(factor)}


def save(form, directory):
    """Steps 1 and 2, as a run saves them or as a conversion does."""
    with CheckpointManager(directory / "run", CheckpointConfig(save_every_steps=1)) as saving:
        for step in (1, 2):
            saving.save(step, make_state(step), {"row": step})
    if form == "run":
        return directory / "run"
    for step in (1, 2):
        _, document, leaves = read_lazily(directory / "run" / "checkpoints" / str(step))
        write_stream(directory / "streamed", step, leaves, document.metadata, max_block_bytes=400)
    return directory / "streamed"


@pytest.fixture(params=["run", "streamed"])
def model_dir(request, tmp_path):
    return save(request.param, tmp_path)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return {form: save(form, tmp_path_factory.mktemp(form)) for form in ("run", "streamed")}


@pytest.mark.parametrize(("name", "step"), [("", 2), ("checkpoints", 2), ("checkpoints/1", 1)])
@pytest.mark.parametrize("form", ["run", "streamed"])
def test_every_name_a_user_may_give(both, form, name, step):
    path, document, leaves = read_lazily(both[form] / name)
    assert path == both[form] / "checkpoints" / str(step)
    assert (document.step, document.metadata["row"]) == (step, step)
    assert list(leaves) == list(document.leaves)
    np.testing.assert_array_equal(leaves["params/decoder/layers/kernel"].read(), KERNEL * step)
    assert leaves["params/decoder/scale"].dtype == jnp.bfloat16
    assert leaves["step"].read() == step
    assert leaves["opt_state/0/count"].shape == ()


@settings(max_examples=40, deadline=None)
@given(form=st.sampled_from(["run", "streamed"]), data=st.data())
def test_any_region(both, form, data):
    leaf = read_lazily(both[form], prefix="params/decoder/layers", verify=False)[2]["params/decoder/layers/kernel"]
    box = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2)))) for size in leaf.shape)
    np.testing.assert_array_equal(leaf.read(box), (KERNEL * 2)[box])


def test_blocks_follow_the_chunks(both):
    """Shards of the run lie side by side along dimension 1; a conversion that read them cut there too."""
    for directory in both.values():
        _, _, leaves = read_lazily(directory)
        assert leaves["params/decoder/layers/kernel"].outer == (1,)


def test_only_what_is_asked_for_is_opened_and_verified(model_dir):
    seen = []
    _, _, leaves = read_lazily(model_dir, prefix="params/", on_progress=lambda *figures: seen.append(figures))
    assert set(leaves) == {"params/decoder/layers/kernel", "params/decoder/scale"}
    total = KERNEL.nbytes + 8
    assert seen[-1] == (total, total)


def damage(model_dir, step):
    """Changes one byte in every file of arrays of a step; the compressed ones become unreadable, or not."""
    chunks = [path for path in (model_dir / "checkpoints" / str(step) / "state").rglob("*") if path.is_file()]
    chunks = [path for path in chunks if path.parent.name == "d" or path.name[0].isdigit()]
    assert chunks
    for path in chunks:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)


def test_a_damaged_step_is_left_for_the_one_before_it_loudly(model_dir, caplog):
    damage(model_dir, 2)
    _, document, leaves = read_lazily(model_dir)
    assert document.step == 1
    np.testing.assert_array_equal(leaves["params/decoder/layers/kernel"].read(), KERNEL)
    for words in ("the checkpoint of step 2", "NOT used", "Falling back to step 1"):
        assert words in caplog.text


def test_a_flipped_bit_names_its_leaf(tmp_path):
    array = np.zeros((8, 1024), np.float32)
    path = write_stream(tmp_path, 0, {"a": lazy.from_array(array), "b": lazy.from_array(array)}, {})
    chunk = tmp_path / "checkpoints" / "0" / "state" / "b" / "0.0"
    raw = bytearray(chunk.read_bytes())
    raw[17] ^= 4
    chunk.write_bytes(raw)
    with pytest.raises(UserError, match=r"step 0: 1 of 2 leaves lost their bits, the first is 'b'"):
        read_lazily(path)
    _, document, leaves = read_lazily(path, verify=False)
    with pytest.raises(DamagedError, match="'b'"):
        verify_lazily(leaves, document)
    verify_lazily({"a": leaves["a"]}, document)


@pytest.mark.parametrize("name", ["0.0", ".zarray"])
def test_a_missing_or_cut_file_names_its_leaf(tmp_path, name):
    path = write_stream(tmp_path, 0, {"a/b": lazy.full((8, 4), "float32", 1.0)}, {})
    file = path / "state" / "a.b" / name
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"its leaf 'a/b' cannot be read"):
        read_lazily(path)
    file.unlink()
    with pytest.raises(UserError, match=r"'a/b'"):
        read_lazily(path)


def test_an_array_of_another_shape_is_damage(tmp_path):
    leaves = {"a": lazy.full((8, 4), "float32"), "b": lazy.full((4, 8), "float32")}
    state = write_stream(tmp_path, 0, leaves, {}) / "state"
    (state / "a" / ".zarray").write_text((state / "b" / ".zarray").read_text())
    with pytest.raises(UserError, match=r"its leaf 'a' is float32\[4, 8\], not as on record"):
        read_lazily(tmp_path)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(UserError, match="does not exist; name a MODEL_DIR"):
        read_lazily(tmp_path / "absent")


def test_a_run_cuts_large_arrays_into_layers_and_pieces(tmp_path, monkeypatch):
    """Or a leaf of one device would be one chunk, and a layer of it could not be read without the rest."""
    monkeypatch.setattr(saving, "MAX_CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr(saving, "MIN_CHUNK_BYTES", 1 << 10)
    shapes = {"stack": (3, 64, 32), "table": (256, 32), "narrow": (64, 2, 8), "small": (4, 4)}
    with CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1)) as manager:
        manager.save(1, {name: jnp.ones(shape) for name, shape in shapes.items()}, {})
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(tmp_path / "checkpoints" / "1" / "state").item_metadata.tree
    chunks = {name: metadata.storage.chunk_shape for name, metadata in tree.items()}
    assert chunks == {"stack": (1, 32, 32), "table": (32, 32), "narrow": (64, 2, 8), "small": (4, 4)}
