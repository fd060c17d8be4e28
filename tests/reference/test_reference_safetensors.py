"""Our safetensors files against the library's: each reads what the other writes, every bit of every dtype."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from safetensors import safe_open

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.interop.safetensors_files import read_tensors, write_tensors
from t5x_scale.interop.safetensors_format import DTYPES

TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def make_arrays():
    """Random bits in every dtype, NaNs among them, in awkward shapes."""
    generator = np.random.default_rng(0)
    arrays = {}
    for name, dtype in DTYPES.items():
        for shape in ((), (0, 3), (7,), (3, 1, 5)):
            raw = generator.integers(0, 256, int(np.prod(shape)) * dtype.itemsize, np.uint8)
            array = (raw & 1 if name == "BOOL" else raw).view(dtype).reshape(shape)
            arrays[f"{name}.{'x'.join(map(str, shape))}"] = array
    return arrays


def to_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def to_torch(array, dtype):
    if not array.size:
        return torch.zeros(array.shape, dtype=dtype)
    return torch.from_numpy(array.reshape(-1).view(np.uint8).copy()).view(dtype).reshape(array.shape)


def test_every_dtype_is_known():
    assert TORCH.keys() == DTYPES.keys()


@pytest.mark.parametrize("shard", [10**9, 200])
def test_the_library_reads_what_we_write(tmp_path, shard):
    arrays = make_arrays()
    write_tensors(tmp_path, {name: lazy.from_array(array) for name, array in arrays.items()}, shard)
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == TORCH[name.partition(".")[0]]
        assert tuple(found[name].shape) == array.shape
        assert to_bytes(found[name]) == array.tobytes()


def test_we_read_what_the_library_writes(tmp_path):
    arrays = make_arrays()
    tensors = {name: to_torch(array, TORCH[name.partition(".")[0]]) for name, array in arrays.items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    found = read_tensors(tmp_path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        read = found[name].read()
        assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_a_file_of_one_dtype_is_the_librarys_file(tmp_path):
    """In the order of names, the order in which the library writes, all bytes are the same."""
    tensors = {name: torch.randn(3, 5, dtype=torch.bfloat16) for name in "abc"}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "ours").mkdir()
    write_tensors(tmp_path / "ours", read_tensors(tmp_path))
    ours, theirs = (path / "model.safetensors" for path in (tmp_path / "ours", tmp_path))
    assert ours.read_bytes() == theirs.read_bytes()


DAMAGE = {
    "cut": lambda content: content[:-1],
    "followed by more": lambda content: content + b"\0",
    "a huge header": lambda content: (1 << 40).to_bytes(8, "little") + content[8:],
    "an overlap": lambda content: content.replace(b"[24,48]", b"[23,47]"),
    "no dtype": lambda content: content.replace(b'"F32"', b'"F99"', 1),
    "a shape too large": lambda content: content.replace(b"[6]", b"[7]", 1),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_both_refuse(tmp_path, kind):
    tensors = {name: lazy.from_array(np.zeros(6, np.float32)) for name in "ab"}
    write_tensors(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    damaged = DAMAGE[kind](content)
    assert damaged != content
    path.write_bytes(damaged)
    with pytest.raises(safetensors.SafetensorError), safe_open(path, "pt"):
        pass
    with pytest.raises(UserError):
        read_tensors(path)


def test_the_index_is_read_by_transformers(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="4KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    (tmp_path / "ours").mkdir()
    write_tensors(tmp_path / "ours", read_tensors(tmp_path / "theirs"), max_shard_bytes=3000)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    (tmp_path / "ours" / "config.json").write_bytes((tmp_path / "theirs" / "config.json").read_bytes())
    again = LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
