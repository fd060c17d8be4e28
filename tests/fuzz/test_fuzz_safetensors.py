"""Files of safetensors, from strangers: tensors of the bytes that are there, or UserError."""

import json

import numpy as np
import pytest
from mutations import mutate_bytes, mutate_tree, random_bytes, to_json

from t5x_scale.core.errors import UserError
from t5x_scale.interop.safetensors_files import read_tensors
from t5x_scale.interop.safetensors_format import LENGTH_BYTES, MAX_HEADER_BYTES, make_header, parse_header, parse_length

TENSORS = [
    ("model.embed.weight", np.dtype(np.float32), (3, 4)),
    ("b", np.dtype(np.int64), ()),
    ("c", np.dtype(bool), (0, 7)),
]
HEAD, ENTRIES = make_header(TENSORS, {"format": "pt"})
TABLE = json.loads(HEAD[LENGTH_BYTES:])
DATA = bytes(range(max(entry.end for entry in ENTRIES) - len(HEAD)))


def make(generator):
    kind = generator.randrange(10)
    if kind == 0:
        return random_bytes(generator)
    if kind < 4:
        return mutate_bytes(generator, HEAD + DATA)
    text = to_json(mutate_tree(generator, TABLE))
    if kind == 4:  # A name twice, which JSON allows.
        text = text[:-1] + "," + text[1:]
    data = DATA if generator.random() < 0.8 else mutate_bytes(generator, DATA)
    return len(text.encode()).to_bytes(LENGTH_BYTES, "little") + text.encode() + data


def test_safetensors(try_inputs, directory):
    file = directory / "model.safetensors"

    def read(data):
        file.write_bytes(data)
        for name, tensor in read_tensors(file).items():
            assert type(name) is str
            assert tensor.nbytes <= len(data)
            assert tensor.read().shape == tensor.shape

    try_inputs(make, read, UserError)


def test_lengths_of_headers(tmp_path):
    for length in (MAX_HEADER_BYTES + 1, 2**60, 2**64 - 1):
        with pytest.raises(UserError, match="ask for a header of"):
            parse_length(length.to_bytes(8, "little"), 2**63, "file")
    with pytest.raises(UserError, match="has 99 bytes, the file 20"):
        parse_length((99).to_bytes(8, "little"), 20, "file")


def test_a_header_of_many_names_is_read_in_time():
    """A hundred thousand names, one of them twice: what compares each with all others takes minutes."""
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"{index}":{entry}' for index in [*range(100_000), 7]) + "}").encode()
    with pytest.raises(UserError, match="has '7' twice"):
        parse_header(header, 8 + len(header), "file")


INDEX = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}


def test_indices_of_shards(try_inputs, directory):
    """An index names files beside it and no others."""
    inside = directory / "inside"
    inside.mkdir()
    head, _ = make_header([("a", np.dtype(np.uint8), (4,))], {})
    (inside / "model-00001-of-00001.safetensors").write_bytes(head + b"data")
    outside = directory / "outside.safetensors"
    outside.write_bytes(head + b"kept")
    index = inside / "model.safetensors.index.json"

    def spoil(generator):
        if generator.random() < 0.3:
            return mutate_bytes(generator, json.dumps(INDEX).encode())
        spoiled = mutate_tree(generator, INDEX)
        if generator.random() < 0.3:
            place = generator.choice(("../outside.safetensors", str(outside), "./../outside.safetensors", ".."))
            spoiled = {"weight_map": {"a": place}}
        return to_json(spoiled).encode()

    def read(data):
        index.write_bytes(data)
        for tensor in read_tensors(inside).values():
            assert tensor.read().tobytes() == b"data"

    try_inputs(spoil, read, UserError, inputs=2000, at_least=0.005)
