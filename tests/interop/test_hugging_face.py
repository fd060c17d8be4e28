"""Directories of models: whole, compared with what was to be written, or not there."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.interop.hugging_face import check_directory, is_hugging_face, read_directory, write_directory
from t5x_scale.interop.safetensors_files import SINGLE_FILE, write_tensors

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from gcs import FakeStorage

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 7}
GENERATION = {"eos_token_id": 2}
TOKENIZER = {"tokenizer.json": b"{}", "tokenizer_config.json": b'{"bos_token": "<s>"}'}


def make_tensors():
    generator = np.random.default_rng(0)
    arrays = {
        "embedding": generator.normal(size=(7, 5)).astype(ml_dtypes.bfloat16),
        "norm": generator.normal(size=5).astype(np.float32),
        "step": np.array(3, np.int64),
    }
    return {name: lazy.from_array(array) for name, array in arrays.items()}


def write(path, tensors=None, **options):
    return write_directory(path, CONFIG, GENERATION, tensors or make_tensors(), TOKENIZER, "# A model\n", **options)


def test_what_is_written_is_read(tmp_path):
    seen = []
    write(tmp_path / "new" / "model", max_shard_bytes=50, max_block_bytes=16, on_progress=lambda *at: seen.append(at))
    directory = tmp_path / "new" / "model"
    assert is_hugging_face(directory)
    assert [path.name for path in directory.parent.iterdir()] == ["model"]
    found = read_directory(directory)
    assert (found.config, found.generation_config, found.tokenizer) == (CONFIG, GENERATION, TOKENIZER)
    for name, tensor in make_tensors().items():
        assert found.tensors[name].read().tobytes() == tensor.read().tobytes()
    assert (directory / "README.md").read_text() == "# A model\n"
    total = 2 * (70 + 20 + 8)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_without_generation_config_and_tokenizer(tmp_path):
    write_directory(tmp_path / "model", CONFIG, None, make_tensors(), {}, "")
    found = read_directory(tmp_path / "model")
    assert found.generation_config is None
    assert found.tokenizer == {}


class TestTargets:
    def test_an_empty_directory_is_taken(self, tmp_path):
        (tmp_path / "model").mkdir()
        write(tmp_path / "model")
        assert read_directory(tmp_path / "model").config == CONFIG

    @pytest.mark.parametrize("name", ["model", "model/kept"])
    def test_nothing_is_overwritten(self, tmp_path, name):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "kept").write_text("kept")
        with pytest.raises(UserError, match="exists; nothing is overwritten"):
            write(tmp_path / name)
        assert os.listdir(tmp_path) == ["model"]
        assert (tmp_path / "model" / "kept").read_text() == "kept"

    def test_one_that_fills_while_we_write(self, tmp_path):
        def read(region):
            (tmp_path / "model").mkdir(exist_ok=True)
            (tmp_path / "model" / "other").write_text("")
            return np.zeros([part.stop - part.start for part in region], np.float32)

        with pytest.raises(UserError, match=r"cannot write .*model: "):
            write(tmp_path / "model", {"a": lazy.LazyArray((3,), np.dtype(np.float32), read)})
        assert os.listdir(tmp_path) == ["model"]
        assert os.listdir(tmp_path / "model") == ["other"]

    @pytest.mark.parametrize("name", ["config.json", "../tokenizer.json", "README.md"])
    def test_a_tokenizer_file_of_a_wrong_name(self, tmp_path, name):
        with pytest.raises(UserError, match="is no name for a file of a tokenizer"):
            write_directory(tmp_path / "model", CONFIG, None, make_tensors(), {name: b""}, "")
        assert os.listdir(tmp_path) == []


class TestChecks:
    @pytest.fixture
    def written(self, tmp_path):
        return write_tensors(tmp_path, make_tensors(), max_block_bytes=2)

    def test_a_bit_that_flips(self, tmp_path, written):
        check_directory(tmp_path, written)
        path = tmp_path / SINGLE_FILE
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # The last tensor in the file is the narrowest.
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"tensor 'embedding' does not read back .* in \[6:7, 4:5\]"):
            check_directory(tmp_path, written)

    def test_tensors_missing_and_left_over(self, tmp_path, written):
        with pytest.raises(UserError, match=r"'norms' is missing from .*did you mean 'norm'"):
            check_directory(tmp_path, written | {"norms": written["norm"]})
        del written["step"]
        with pytest.raises(UserError, match="'step' should not be in"):
            check_directory(tmp_path, written)

    def test_another_shape(self, tmp_path, written):
        shorter = dataclasses.replace(written["norm"], shape=(4,))
        with pytest.raises(UserError, match=r"'norm' is float32\[5\], not float32\[4\]"):
            check_directory(tmp_path, written | {"norm": shorter})

    def test_a_file_that_rots_before_it_has_its_name_leaves_nothing(self, tmp_path, monkeypatch):
        def write_and_rot(directory, *rest, **options):
            written = write_tensors(directory, *rest, **options)
            with open(directory / SINGLE_FILE, "r+b") as file:
                file.seek(-3, os.SEEK_END)
                file.write(b"rot")
            return written

        monkeypatch.setattr("t5x_scale.interop.hugging_face.write_tensors", write_and_rot)
        with pytest.raises(UserError, match="'embedding' does not read back"):
            write(tmp_path / "model")
        assert os.listdir(tmp_path) == []

    def test_an_interrupt_leaves_nothing(self, tmp_path):
        def interrupt(region):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "model", {"a": lazy.LazyArray((3,), np.dtype(np.float32), interrupt)})
        assert os.listdir(tmp_path) == []


class TestReading:
    def test_a_name_of_a_hub(self):
        with pytest.raises(UserError, match="meta/llama is no directory"):
            read_directory("meta/llama")

    def test_no_config(self, tmp_path):
        with pytest.raises(UserError, match=r"no such file: .*config\.json"):
            read_directory(tmp_path)

    @pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
    def test_a_config_that_is_a_list(self, tmp_path, name):
        write(tmp_path / "model")
        (tmp_path / "model" / name).write_text("[]")
        with pytest.raises(UserError, match=f"{name} is no JSON object"):
            read_directory(tmp_path / "model")


# One process imports and forks a writer for every kill. A block takes long enough for the kill to come anywhere.
KILLED = """
import json, os, random, signal, sys, time
import numpy as np
from t5x_scale.core import lazy
from t5x_scale.interop.hugging_face import write_directory

def slow(region):
    time.sleep(0.025)
    return np.ones([part.stop - part.start for part in region], np.float32)

tensors = {name: lazy.LazyArray((8, 64), np.dtype(np.float32), slow) for name in "abc"}
target, kills = sys.argv[1], int(sys.argv[2])
generator = random.Random(0)
for kill in range(kills + 1):
    child = os.fork()
    if child == 0:
        try:
            sizes = {"max_shard_bytes": 2048, "max_block_bytes": 256}
            write_directory(target, {"model_type": "x"}, None, tensors, {}, "", **sizes)
            os._exit(0)
        finally:
            os._exit(1)
    if kill < kills:
        time.sleep(generator.uniform(0.005, 0.45))
        os.kill(child, signal.SIGKILL)
    print(json.dumps([os.waitpid(child, 0)[1], os.listdir(os.path.dirname(target))]), flush=True)
"""


def test_killed_exports_leave_nothing_that_looks_finished(tmp_path):
    target, kills = tmp_path / "model", 8
    result = subprocess.run(
        [sys.executable, "-c", KILLED, target, str(kills)], capture_output=True, text=True, check=True, timeout=120
    )
    *killed, last = map(json.loads, result.stdout.splitlines())
    assert len(killed) == kills
    for status, names in killed:
        assert status == 9
        # At most one: each removes what the one before it left.
        assert len(names) <= 1
        assert all(name.startswith(".model.partial-") for name in names)
    assert any(names for _, names in killed)
    assert last == [0, ["model"]]
    assert set(read_directory(target).tensors) == {"a", "b", "c"}


def test_an_export_that_is_still_running_is_left_alone(tmp_path):
    def read(region):
        if not (tmp_path / "model").exists():
            write(tmp_path / "model")
        return np.zeros([part.stop - part.start for part in region], np.float32)

    with pytest.raises(UserError, match=r"cannot write .*model: "):
        write(tmp_path / "model", {"a": lazy.LazyArray((3,), np.dtype(np.float32), read)})
    assert read_directory(tmp_path / "model").config == CONFIG
    assert os.listdir(tmp_path) == ["model"]


REMOTE = """
import sys
sys.modules["tensorflow"] = None
import numpy as np
from t5x_scale.core import files, lazy
from t5x_scale.core.errors import UserError
from t5x_scale.interop.hugging_face import read_directory, write_directory
from t5x_scale.interop.safetensors_files import read_tensors

values = np.arange(600, dtype=np.float32).reshape(20, 30)
tensors = {name: lazy.transpose(lazy.from_array(values), (1, 0)) for name in "abc"}
place = "gs://bucket/models/one"
write_directory(place, {"model_type": "x"}, None, tensors, {"tokenizer.json": b"{}"}, "card", max_shard_bytes=3000,
                max_block_bytes=500)
found = read_directory(place)
for tensor in found.tensors.values():
    np.testing.assert_array_equal(tensor.read((slice(3, 9), slice(2, 5))), values.T[3:9, 2:5])
assert found.tokenizer == {"tokenizer.json": b"{}"}
try:
    write_directory(place, {}, None, tensors, {}, "")
except UserError as error:
    print(error)

def fail(region):
    raise UserError("the source is gone")

try:
    write_directory("gs://bucket/models/two", {}, None,
                    tensors | {"d": lazy.LazyArray((4,), np.dtype(np.float32), fail)}, {}, "", max_shard_bytes=3000)
except UserError as error:
    print(error, sorted(path.name for path in files.to_path("gs://bucket/models").iterdir()))
"""


def test_object_stores():
    with FakeStorage(["bucket"]) as storage:
        result = subprocess.run(
            [sys.executable, "-c", REMOTE], capture_output=True, text=True, env={**os.environ, **storage.environment()}
        )
    assert result.returncode == 0, result.stderr
    refused, failed = result.stdout.splitlines()
    assert "gs://bucket/models/one exists; nothing is overwritten" in refused
    assert failed == "the source is gone ['one']"
