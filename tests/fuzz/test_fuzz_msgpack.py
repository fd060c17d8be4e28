"""Checkpoints of T5X, from strangers: parameters of the shapes that were asked for, or UserError."""

import logging

import msgpack
import numpy as np
import pytest
from mutations import DEEP, mutate_bytes, mutate_tree, nest, random_bytes

from t5x_scale.core.errors import UserError
from t5x_scale.interop import flax_msgpack
from t5x_scale.interop.t5x_reader import read_t5x
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.assembly import shapes_of
from t5x_scale.models.config import ModelConfig
from tests.fakes import t5x_checkpoints as fake

CONFIG = ModelConfig(
    num_layers=1, embed_dim=2, mlp_dim=3, num_heads=1, num_kv_heads=1, head_dim=2, vocab_size=3, dtype="float32"
)
DECODER = Architecture(CONFIG, positions="none", attention_scale=1.0, activation="gelu_tanh")
TARGET = fake.make_decoder(CONFIG)
NAMES = list(fake.flatten({"target": TARGET}))


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """The bytes of a checkpoint that holds its arrays itself, and of one that says where they lie."""
    directory = tmp_path_factory.mktemp("valid")
    fake.write_legacy(directory / "whole", TARGET, inline=NAMES, chunked=NAMES[:2])
    fake.write_legacy(directory / "beside", TARGET, inline=NAMES[2:])
    return [(directory / name / "checkpoint").read_bytes() for name in ("whole", "beside")]


def unpack(data):
    """The tree with extensions as they are, `[code, bytes]`: what a mutation is to change too."""
    return msgpack.unpackb(data, ext_hook=lambda code, content: {"": [code, *msgpack.unpackb(content, raw=False)]})


def pack(node):
    """The inverse of `unpack`, of whatever it has become."""
    if isinstance(node, dict) and list(node) == [""] and isinstance(node[""], list) and len(node[""]) > 1:
        code, *content = node[""]
        return msgpack.ExtType(code if code in (1, 2, 3, 4) else 1, msgpack.packb(content))
    if isinstance(node, dict):
        return {key: pack(child) for key, child in node.items()}
    return [pack(child) for child in node] if isinstance(node, list) else node


def make(valid):
    def spoil(generator):
        kind, data = generator.randrange(10), generator.choice(valid)
        if kind == 0:
            return random_bytes(generator)
        if kind < 4:
            return mutate_bytes(generator, data)
        try:
            packed = msgpack.packb(pack(mutate_tree(generator, unpack(data))))
            return nest(packed, msgpack.packb(DEEP), b"\x91", b"\x90")
        except (ValueError, OverflowError, TypeError, RecursionError):  # What msgpack cannot say.
            return mutate_bytes(generator, data)

    return spoil


def test_t5x(try_inputs, valid, directory, caplog):
    caplog.set_level(logging.ERROR)
    shapes = shapes_of(DECODER)

    def read(data):
        (directory / "checkpoint").write_bytes(data)
        for path, leaf in read_t5x(directory, DECODER).leaves.items():
            assert leaf.array.read().shape == shapes[path]

    try_inputs(make(valid), read, UserError)


@pytest.mark.parametrize(
    "place", ["../other/target.decoder.decoder_norm.scale", "a/../../other", "..", "gs://bucket/x", "/etc", "."]
)
def test_arrays_that_lie_elsewhere(tmp_path, place):
    """A description leads to an array of its checkpoint and nowhere else, and so does the name of a leaf."""
    inside = tmp_path / "inside"
    inside.mkdir()
    fake.write_legacy(tmp_path / "other", TARGET)
    for leaf in (f"PLACEHOLDER://{place}", {"driver": "zarr", "kvstore": {"path": place}, "metadata": {"shape": [2]}}):
        (inside / "checkpoint").write_bytes(msgpack.packb({"target": {"decoder": leaf}}))
        with pytest.raises(UserError, match="cannot be read"):
            read_t5x(inside, DECODER)


def test_shapes_are_numbers_before_they_are_multiplied():
    chunks = {"0": msgpack.ExtType(1, msgpack.packb(([1], "float32", b"abcd")))}
    tree = {"__msgpack_chunked_array__": True, "shape": {"0": 2**40, "1": "x"}, "chunks": chunks}
    with pytest.raises(ValueError, match="a shape that is none"):
        flax_msgpack.decode(msgpack.packb(tree))


@pytest.mark.parametrize("name", ["O", "f4,f4", "(1000,1000)f4", "V100", "datetime64[ns]", "S5"])
def test_arrays_hold_numbers(name):
    data = msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(([1], name, bytes(8))))})
    with pytest.raises(ValueError, match="an array of"):
        flax_msgpack.decode(data)
    assert np.float32(flax_msgpack.decode(msgpack.packb({"a": 1.0}))["a"]) == 1


@pytest.mark.parametrize("chunk", [10**8, 10**12, 2**60])
def test_chunks_are_no_larger_than_arrays(tmp_path, chunk):
    name = "target.decoder.decoder_norm.scale"
    fake.write_legacy(tmp_path / "checkpoint_7", TARGET)
    fake.spoil_json(tmp_path / "checkpoint_7" / name / ".zarray", lambda value: value.update(chunks=[chunk]))
    with pytest.raises(UserError, match=r"decoder_norm\.scale.* cannot be read"):
        read_t5x(tmp_path / "checkpoint_7", DECODER)
