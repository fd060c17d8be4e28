"""Streamed checkpoints: what is written is what everybody else restores, whole or not at all."""

import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_scale.checkpoint import layout, plain_form
from t5x_scale.checkpoint.block_files import make_buffer, write_file
from t5x_scale.checkpoint.lazy_reader import read_lazily
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.restore import restore_parameters
from t5x_scale.checkpoint.stream_writer import write_stream
from t5x_scale.core import files, lazy, trees
from t5x_scale.core.errors import UserError

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "params/decoder/layers/mlp/wi_0/kernel": RANDOM.normal(size=(3, 16, 40)).astype(np.float32),
    "params/decoder/final_norm/scale": RANDOM.normal(size=16).astype(ml_dtypes.bfloat16),
    "opt_state/0/count": np.array(7, np.int32),
    "opt_state/0/mask": np.array([True, False]),
    "step": np.array(7, np.uint32),
}


def write(directory, arrays=ARRAYS, step=7, **options):
    return write_stream(directory, step, {path: lazy.from_array(a) for path, a in arrays.items()}, {"a": 1}, **options)


def abstract_of(arrays, sharding=None):
    leaves = {path: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for path, a in arrays.items()}
    return trees.unflatten(leaves)


def check_equal(nested, arrays=ARRAYS):
    found = trees.flatten(nested)
    assert found.keys() == arrays.keys()
    for path, array in arrays.items():
        assert found[path].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(found[path]), array)


@pytest.mark.parametrize("max_block_bytes", [300, 1000, 1 << 25])
def test_the_manager_restores_it_on_one_device(tmp_path, max_block_bytes):
    assert write(tmp_path, max_block_bytes=max_block_bytes) == tmp_path / "checkpoints" / "7"
    restored = CheckpointManager(tmp_path).restore(abstract_of(ARRAYS))
    check_equal(restored.state)
    assert (restored.step, restored.metadata["a"]) == (7, 1)
    assert restored.metadata["environment"]["backend"] == "cpu"
    assert layout.list_leftovers(tmp_path / "checkpoints") == []


def test_it_is_restored_sharded_over_eight_devices(tmp_path):
    write(tmp_path, max_block_bytes=700)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    specs = {"decoder/layers/mlp/wi_0/kernel": P(None, None, "x"), "decoder/final_norm/scale": P("x")}
    params = trees.unflatten(
        {
            path: jax.ShapeDtypeStruct(
                ARRAYS[f"params/{path}"].shape, ARRAYS[f"params/{path}"].dtype, sharding=NamedSharding(mesh, spec)
            )
            for path, spec in specs.items()
        }
    )
    found, report = restore_parameters(tmp_path, params)
    kernel = found["decoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 16, 5)
    np.testing.assert_array_equal(kernel, ARRAYS["params/decoder/layers/mlp/wi_0/kernel"])
    assert report.step == 7


def test_orbax_restores_it_without_being_told_anything(tmp_path):
    path = write(tmp_path)
    check_equal(ocp.PyTreeCheckpointer().restore(path / "state"))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        arguments = ocp.args.Composite(state=ocp.args.PyTreeRestore(), metadata=ocp.args.JsonRestore())
        items = checkpointer.restore(path, arguments)
    check_equal(items["state"])
    assert items["metadata"]["content"]["step"] == 7


def test_the_documents_are_those_that_orbax_writes(tmp_path):
    """Orbax's own save of the same numpy arrays; what differs is the compression of chunks."""
    nested = {path: array for path, array in ARRAYS.items() if array.ndim}
    ours = pathlib.Path(write(tmp_path / "ours", nested))
    theirs = tmp_path / "theirs" / "7"
    handler = ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(use_ocdbt=False), metadata=ocp.JsonCheckpointHandler()
    )
    with ocp.Checkpointer(handler) as checkpointer:
        state = ocp.args.PyTreeSave(trees.unflatten(nested))
        checkpointer.save(theirs, ocp.args.Composite(state=state, metadata=ocp.args.JsonSave({})))
    names = [{str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} for root in (ours, theirs)]
    assert names[0] == names[1]
    tree, step = (("state", "_METADATA"), ("_CHECKPOINT_METADATA",))
    assert files.read_json(ours.joinpath(*tree)) == files.read_json(theirs.joinpath(*tree))
    steps = [files.read_json(root.joinpath(*step)) for root in (ours, theirs)]
    assert steps[0].keys() == steps[1].keys()
    assert steps[0]["item_handlers"] == steps[1]["item_handlers"]
    for path in nested:
        name = plain_form.array_name(path)
        arrays = [files.read_json(root / "state" / name / ".zarray") for root in (ours, theirs)]
        assert {**arrays[0], "compressor": 0} == {**arrays[1], "compressor": 0}


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    dtype=st.sampled_from([np.float32, ml_dtypes.bfloat16, np.float16, np.int8, np.float64]),
    max_block_bytes=st.integers(32, 3000),
    data=st.data(),
)
def test_whatever_is_written_is_read_back(tmp_path_factory, shape, dtype, max_block_bytes, data):
    order = data.draw(st.permutations(range(len(shape))))
    array = RANDOM.normal(size=shape).astype(dtype)
    directory = tmp_path_factory.mktemp("model")
    view = lazy.transpose(lazy.from_array(array), order)
    write_stream(directory, 0, {"a/b": view}, {}, max_block_bytes=max_block_bytes)
    _, _, leaves = read_lazily(directory)
    assert leaves["a/b"].read().tobytes() == array.transpose(order).tobytes()
    box = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2)))) for size in view.shape)
    assert leaves["a/b"].read(box).tobytes() == array.transpose(order)[box].tobytes()


def test_chunks_follow_the_order_of_the_source(tmp_path):
    view = lazy.transpose(lazy.from_array(np.zeros((8, 6), np.float32)), (1, 0))
    path = write_stream(tmp_path, 0, {"a": view}, {}, max_block_bytes=6 * 4 * 2)
    assert files.read_json(path / "state" / "a" / ".zarray")["chunks"] == [6, 2]


def test_a_run_saves_beside_it(tmp_path):
    write(tmp_path)
    state = abstract_of(ARRAYS)
    with CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1, keep=1)) as manager:
        restored = manager.restore(state)
        manager.save(8, restored.state, {})
    assert layout.list_steps(tmp_path / "checkpoints") == [8]


def test_an_existing_step_is_refused_and_untouched(tmp_path):
    write(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match="is there already; nothing was overwritten"):
        write(tmp_path)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    write(tmp_path, step=8)
    assert layout.list_steps(tmp_path / "checkpoints") == [7, 8]


@pytest.mark.parametrize("error", [UserError("the source is rotten"), KeyboardInterrupt()])
def test_what_fails_leaves_nothing(tmp_path, error):
    def read(region):
        raise error

    leaves = {"good": lazy.full((4,), "float32"), "bad": lazy.LazyArray((3,), np.dtype(np.float32), read)}
    with pytest.raises(type(error)):
        write_stream(tmp_path, 0, leaves, {})
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_error_of_the_caller_stops_the_threads_first(tmp_path):
    def fail(done, total):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        write(tmp_path, max_block_bytes=100, on_progress=fail)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_metadata_that_is_not_json_is_refused_before_the_work(tmp_path):
    def read(region):
        raise AssertionError("read before the metadata was looked at")

    leaf = lazy.LazyArray((3,), np.dtype(np.float32), read)
    with pytest.raises(TypeError):
        write_stream(tmp_path, 0, {"a": leaf}, {"array": np.zeros(3)})


def test_a_disk_that_refuses_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_file(tmp_path / "file" / "below", b"1")


def test_progress_ends_with_everything(tmp_path):
    seen = []
    write(tmp_path, max_block_bytes=500, on_progress=lambda *figures: seen.append(figures))
    total = sum(array.nbytes for array in ARRAYS.values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_names_that_would_share_a_directory_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unique"):
        write(tmp_path, {"a/b": np.zeros(1), "a.b": np.zeros(1)})


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 12289])
def test_files_of_any_length_whole_pages_or_not(tmp_path, size):
    data = make_buffer(size)[:size]
    data[:] = RANDOM.integers(0, 256, size, np.uint8)
    write_file(tmp_path / "a" / "file", data)
    assert (tmp_path / "a" / "file").read_bytes() == data.tobytes()


KILLED = """
import os, signal, sys, threading
import numpy as np
from t5x_scale.checkpoint.stream_writer import write_stream
from t5x_scale.core import lazy

leaves = {f"params/{i}": lazy.full((64, 1024), "float32", i) for i in range(8)}
if sys.argv[2] == "die":
    def stop(done, total):
        if done > total // 2:
            os.kill(os.getpid(), signal.SIGKILL)
else:
    stop = None
write_stream(sys.argv[1], 3, leaves, {}, max_block_bytes=1 << 14, on_progress=stop)
"""


def test_a_kill_leaves_nothing_that_counts_and_the_next_attempt_succeeds(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run([*command, "die"], check=False).returncode == -9
    directory = tmp_path / "checkpoints"
    assert layout.list_steps(directory) == []
    (leftover,) = layout.list_leftovers(directory)
    assert any(leftover.rglob("0.0")), "the kill came before anything was written: the test tests nothing"
    with pytest.raises(UserError, match="no finished checkpoint"):
        read_lazily(tmp_path)
    subprocess.run([*command, "live"], check=True)
    assert layout.list_leftovers(directory) == []
    _, _, leaves = read_lazily(tmp_path)
    np.testing.assert_array_equal(leaves["params/5"].read(), np.full((64, 1024), 5, np.float32))


GROWN = """
import sys
from t5x_scale.checkpoint.lazy_reader import read_lazily
from t5x_scale.checkpoint.stream_writer import write_stream
from t5x_scale.core import lazy

def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024

for step, megabytes in enumerate((192, 576)):
    leaves = {"params/a": lazy.full((megabytes, 512, 512), "float32", 1.5)}
    write_stream(sys.argv[1], step, leaves, {}, max_block_bytes=1 << 22)
    read_lazily(sys.argv[1])
    print(peak())
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    command = [sys.executable, "-c", GROWN, str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    small, large = map(int, output.split())
    assert large - small < 192, f"{small} MB with 192 MB of parameters, {large} MB with 576"
