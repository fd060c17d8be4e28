"""Safetensors files: what is written is read back, in any boxes, and what is damaged is named."""

import errno
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.interop import byte_ranges
from t5x_scale.interop.safetensors_files import INDEX_FILE, SINGLE_FILE, read_tensors, write_tensors
from t5x_scale.interop.safetensors_format import DTYPES

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def arrays(draw):
    """Any bits in any dtype: NaNs with payloads and negative zeros among them."""
    dtype, shape = draw(st.sampled_from(sorted(DTYPES.values(), key=str))), draw(SHAPES)
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.random.Generator(np.random.Philox(draw(st.integers(0, 2**32)))).integers(0, 256, count, np.uint8)
    return (raw & 1 if dtype == np.bool_ else raw).view(dtype).reshape(shape)


@st.composite
def boxes(draw, shape):
    ends = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
    return tuple(slice(*pair) for pair in ends)


def bits(array):
    return np.ascontiguousarray(array).tobytes(), array.shape, array.dtype


def to_lazy(tensors):
    return {name: lazy.from_array(array) for name, array in tensors.items()}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), tensors=st.dictionaries(st.text(min_size=1, max_size=8), arrays(), min_size=1, max_size=6))
def test_bytes_come_back(tmp_path_factory, data, tensors):
    tensors.pop("__metadata__", None)
    directory = tmp_path_factory.mktemp("model")
    shard, block = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 300))
    write_tensors(directory, to_lazy(tensors), max_shard_bytes=shard, max_block_bytes=block)
    found = read_tensors(directory)
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert bits(found[name].read()) == bits(array)
        box = data.draw(boxes(array.shape))
        assert bits(found[name].read(box)) == bits(array[box])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), shape=npst.array_shapes(min_dims=1, max_dims=4, max_side=6), gap=st.integers(0, 40))
def test_every_way_of_reading_a_box(tmp_path_factory, data, shape, gap):
    """Row by row, in spans that are cut, or at once: the same elements; and no byte outside is written."""
    whole = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    path = tmp_path_factory.mktemp("box") / "file"
    path.write_bytes(b"abc" + whole.tobytes())
    box = data.draw(boxes(shape))
    with byte_ranges.open_ranges(path) as file:
        file.gap_bytes = gap
        assert bits(byte_ranges.read_box(file, 3, shape, whole.dtype, box)) == bits(whole[box])
    other = path.with_name("other")
    expected = np.zeros_like(whole)
    expected[box] = whole[box]
    with byte_ranges.create_ranges(other, 3 + whole.nbytes) as file:
        byte_ranges.write_box(file, 3, shape, box, whole[box])
    assert other.read_bytes() == b"\0\0\0" + expected.tobytes()


@settings(max_examples=50, deadline=None)
@given(data=st.data(), shape=npst.array_shapes(min_dims=1, max_dims=4, max_side=6))
def test_blocks_may_be_cut_along_any_dimension(tmp_path_factory, data, shape):
    order = data.draw(st.permutations(range(len(shape))))
    whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    array = lazy.transpose(lazy.from_array(whole), order)
    directory = tmp_path_factory.mktemp("model")
    write_tensors(directory, {"a": array}, max_block_bytes=data.draw(st.integers(1, 200)))
    assert bits(read_tensors(directory)["a"].read()) == bits(whole.transpose(order))


def test_shards_and_their_index(tmp_path):
    tensors = {name: np.full((4, 4), i, np.float32) for i, name in enumerate("abcd")} | {"e": np.float32(7)}
    assert set(write_tensors(tmp_path, to_lazy(tensors), max_shard_bytes=130)) == set("abcde")
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*shards, INDEX_FILE]
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert index["metadata"] == {"total_parameters": 65, "total_size": 260}
    assert index["weight_map"] == dict(zip("abcde", [shards[0]] * 2 + [shards[1]] * 2 + [shards[2]], strict=True))
    assert set(read_tensors(tmp_path / shards[1])) == {"c", "d"}
    assert list(read_tensors(tmp_path / INDEX_FILE)) == list("abcde")


def test_tensors_are_aligned_and_the_header_is_padded(tmp_path):
    tensors = {"odd": np.zeros(3, np.uint8), "half": np.zeros(3, np.float16), "double": np.zeros(1, np.float64)}
    write_tensors(tmp_path, to_lazy(tensors))
    content = (tmp_path / SINGLE_FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {name: value["data_offsets"] for name, value in header.items()} == {
        "double": [0, 8],
        "half": [8, 14],
        "odd": [14, 17],
    }


def test_nothing_is_overwritten(tmp_path):
    one = to_lazy({"a": np.zeros(3, np.float32)})
    write_tensors(tmp_path, one)
    with pytest.raises(UserError, match=r"model\.safetensors is there already"):
        write_tensors(tmp_path, one)


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"has room for .* the model needs 4000000\.0 GB"):
        write_tensors(tmp_path, {"a": lazy.full((10**15,), "float32")})
    assert list(tmp_path.iterdir()) == []


def test_a_dtype_that_the_format_lacks(tmp_path):
    with pytest.raises(UserError, match="tensor 'a' has the dtype complex128"):
        write_tensors(tmp_path, to_lazy({"a": np.zeros(3, np.complex128)}))
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_fails_leaves_no_file_with_a_name(tmp_path):
    def fail(region):
        raise UserError("the source is gone")

    with pytest.raises(UserError, match="the source is gone"):
        write_tensors(tmp_path, {"a": lazy.LazyArray((4,), np.dtype(np.float32), fail)})
    assert [path.name for path in tmp_path.iterdir()] == [".model.safetensors.partial"]
    write_tensors(tmp_path, to_lazy({"a": np.zeros(4, np.float32)}))
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE_FILE]


def make_file(path, table, data, length=None):
    head = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes((len(head) if length is None else length).to_bytes(8, "little") + head + data)
    return path


def entry(begin, end, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


DAMAGED = {
    "no bytes": (b"", "is truncated: 0 bytes hold no safetensors header"),
    "a header that is cut": ((b"{}", b"", 100), r"is truncated: its header has 100 bytes, the file 10"),
    "a huge header": ((b"{}", b"", 1 << 62), "asks? for a header of 4,611,686,018,427,387,904 bytes"),
    "a header that is no JSON": ((b"{'a'", b""), "its header is not JSON"),
    "a header that nests without end": ((b"[" * 100_000, b""), "its header is not JSON"),
    "a header that is no text": ((b"\xff\xfe{}", b""), "its header is not JSON"),
    "a header that is a list": ((b"[]", b""), "its header is no JSON object"),
    "data that is cut": (
        ({"a": entry(0, 8), "b": entry(8, 16)}, bytes(12)),
        "is truncated: .* 'b' is cut",
    ),
    "data that follows": (({"a": entry(0, 8)}, bytes(12)), "4 bytes follow its last tensor"),
    "an overlap": (({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "'b' overlaps 'a'"),
    "the same bytes twice": (({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "'b' overlaps 'a'"),
    "a gap": (({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)), "'b' does not begin where it should"),
    "an unknown dtype": (({"a": entry(0, 8, "BF61")}, bytes(8)), r"'a' has the dtype 'BF61'.*did you mean 'BF16'"),
    "sizes that disagree": (
        ({"a": entry(0, 8, shape=(3,))}, bytes(8)),
        r"'a' of F32\[3\] is 12 bytes, its offsets hold 8",
    ),
    "a negative size": (({"a": entry(0, 8, shape=(-2,))}, bytes(8)), "'a' has no valid dtype, shape and data_offsets"),
    "a missing field": (({"a": {"dtype": "F32"}}, bytes(8)), "'a' has no valid dtype, shape and data_offsets"),
    "three offsets": (({"a": {**entry(0, 8), "data_offsets": [0, 4, 8]}}, bytes(8)), "'a' has no valid"),
    "a name twice": ((b'{"a": 1, "a": 2}', b""), "its header has 'a' twice"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_named(tmp_path, case):
    content, message = DAMAGED[case]
    path = tmp_path / "model.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        make_file(path, *content)
    with pytest.raises(UserError, match=message) as caught:
        read_tensors(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_damage_to_a_header_escapes_as_another_error(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("model")
    write_tensors(directory, to_lazy({"a": np.zeros((2, 3), np.float32), "b": np.ones(5, ml_dtypes.bfloat16)}))
    content = bytearray((directory / SINGLE_FILE).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 35))] = data.draw(st.integers(0, 255))
    (directory / SINGLE_FILE).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        tensors = read_tensors(directory)
    except UserError:
        return
    assert sum(tensor.read().nbytes for tensor in tensors.values()) == sum(tensor.nbytes for tensor in tensors.values())


@pytest.fixture
def sharded(tmp_path):
    write_tensors(tmp_path, to_lazy({name: np.zeros(4, np.float32) for name in ("aa", "bb", "cc")}), max_shard_bytes=16)
    return tmp_path


def change_index(directory, **places):
    index = json.loads((directory / INDEX_FILE).read_text())
    index["weight_map"].update(places)
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file is not None}
    (directory / INDEX_FILE).write_text(json.dumps(index))


class TestShards:
    def test_a_shard_that_is_missing(self, sharded):
        (sharded / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(UserError, match=r"the shard .*model-00002-of-00003.safetensors, .* is missing"):
            read_tensors(sharded)

    def test_a_tensor_that_its_shard_lacks(self, sharded):
        change_index(sharded, aaa="model-00001-of-00003.safetensors")
        with pytest.raises(UserError, match=r"'aaa' in model-00001.*does not hold it \(did you mean 'aa'"):
            read_tensors(sharded)

    def test_a_tensor_in_the_wrong_shard(self, sharded):
        change_index(sharded, aa="model-00002-of-00003.safetensors")
        with pytest.raises(UserError, match=r"tensor 'aa' in model-00002|tensor 'aa' .* does not hold it"):
            read_tensors(sharded)

    def test_a_tensor_that_the_index_lacks(self, sharded):
        change_index(sharded, bb=None, b="model-00002-of-00003.safetensors")
        with pytest.raises(UserError, match=r"'bb' of .*model-00002.* is not in .*did you mean 'b'"):
            read_tensors(sharded)

    def test_a_tensor_in_two_shards(self, sharded):
        first = sharded / "model-00001-of-00003.safetensors"
        (sharded / "model-00003-of-00003.safetensors").write_bytes(first.read_bytes())
        with pytest.raises(UserError, match="'aa' is in two shards"):
            read_tensors(sharded)

    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "", 3])
    def test_a_shard_elsewhere(self, sharded, name):
        change_index(sharded, aa=name)
        with pytest.raises(UserError, match="which is no name of a file beside it"):
            read_tensors(sharded)

    @pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}'])
    def test_an_index_without_a_map(self, sharded, content):
        (sharded / INDEX_FILE).write_text(content)
        with pytest.raises(UserError, match="has no weight_map"):
            read_tensors(sharded)

    def test_an_index_that_is_no_json(self, sharded):
        (sharded / INDEX_FILE).write_text("{")
        with pytest.raises(UserError, match="is not valid JSON"):
            read_tensors(sharded)


class TestNoModel:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(UserError, match="no such file or directory"):
            read_tensors(tmp_path / "absent")

    def test_pickles(self, tmp_path):
        (tmp_path / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(UserError, match="convert it to safetensors first"):
            read_tensors(tmp_path)

    def test_another_name(self, tmp_path):
        (tmp_path / "adapter.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match=r"it holds adapter\.safetensors"):
            read_tensors(tmp_path)


def test_storage_that_goes_away_is_told_with_the_file(tmp_path, monkeypatch):
    write_tensors(tmp_path, to_lazy({"a": np.ones(3, np.float32)}))
    tensor = read_tensors(tmp_path)["a"]
    gone = OSError(errno.ESTALE, "Stale file handle")
    monkeypatch.setattr(byte_ranges.os, "preadv", lambda *unused: (_ for _ in ()).throw(gone))
    with pytest.raises(UserError, match=r"cannot read .*model\.safetensors: Stale file handle") as raised:
        tensor.read((slice(0, 3),))
    assert raised.value.__cause__ is gone


def test_a_file_that_cannot_be_seen_is_not_missing(tmp_path, monkeypatch):
    write_tensors(tmp_path, to_lazy({"a": np.ones(3, np.float32)}))
    usual = os.stat

    def stat(path, *given, **named):
        if str(path).endswith(SINGLE_FILE):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return usual(path, *given, **named)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(PermissionError):
        read_tensors(tmp_path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    write_tensors(tmp_path, to_lazy({"a": np.zeros(1000, np.float32)}))
    tensor = read_tensors(tmp_path)["a"]
    with open(tmp_path / SINGLE_FILE, "r+b") as file:
        file.truncate(500)
    with pytest.raises(UserError, match=r"model\.safetensors ends at byte 500"):
        tensor.read()


MEMORY = """
import resource, sys
from t5x_scale.core import lazy
from t5x_scale.interop.safetensors_files import read_tensors, write_tensors

source, target = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
views = {name: lazy.transpose(tensor, (1, 0)) for name, tensor in read_tensors(source).items()}
write_tensors(target, views, max_block_bytes=1 << 22)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_stays_near_the_block_whatever_the_model(tmp_path):
    """160 MB pass, transposed on the way, through some blocks of 4 MiB."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(), target.mkdir()
    write_tensors(source, {name: lazy.full((5000, 4000), "bfloat16", 1.5) for name in "abcd"})
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, source, target], capture_output=True, text=True, check=True, timeout=300
    )
    assert int(result.stdout) < 6 * (1 << 22)
    assert read_tensors(target)["d"].shape == (4000, 5000)
