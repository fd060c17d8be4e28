"""The metadata of a checkpoint, from strangers: a document of sound parts, or DamagedError."""

import hashlib
import json
import os

import pytest
from mutations import mutate_bytes, mutate_tree, random_bytes, to_json

from t5x_scale.checkpoint import integrity, layout
from t5x_scale.checkpoint.layout import DamagedError, Document, LeafRecord
from t5x_scale.core import files

STEP = 12
LEAVES = {
    "params/decoder/layers/mlp/wo/kernel": LeafRecord((2, 32, 16), "float32", "0123456789abcdef"),
    "opt_state/0": LeafRecord((), "int32", "fedcba9876543210"),
    "step": LeafRecord((), "int32", "00000000ffffffff"),
}
METADATA = {"data": {"row": 96, "skip": [[1, 2]], "fingerprint": "f"}, "run": {"free": {"mesh": [1]}, "changes": []}}
VALID = layout.render_document(Document(STEP, LEAVES, METADATA))


def make(generator):
    """Whoever forges a document can make its digest too."""
    kind = generator.randrange(10)
    if kind == 0:
        return random_bytes(generator)
    if kind < 3:
        return mutate_bytes(generator, json.dumps(VALID).encode())
    if kind == 3:
        return to_json(mutate_tree(generator, VALID)).encode()
    content = mutate_tree(generator, VALID["content"])
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return to_json({"digest": hashlib.sha256(text.encode()).hexdigest(), "content": content}).encode()


def test_metadata(try_inputs, directory):
    file = directory / str(STEP) / "metadata" / "metadata"
    file.parent.mkdir(parents=True)

    def read(data):
        file.write_bytes(data)
        document = layout.read_document(files.to_path(directory / str(STEP)))
        assert document.step == STEP
        assert type(document.metadata) is dict
        for path, leaf in document.leaves.items():
            assert not {"", ".", ".."} & set(path.split("/"))
            assert all(type(size) is int and 0 <= size < 2**63 for size in leaf.shape)
            assert type(leaf.dtype) is str
            assert integrity.to_text(integrity.from_text(leaf.fingerprint)) == leaf.fingerprint
        layout.combine_digest(document)

    try_inputs(make, read, DamagedError)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: os.truncate(file, 1 << 40), "it has 1,099,511,627,776 bytes"),
        (lambda file: (file.unlink(), os.mkfifo(file)), "it is no plain file"),
        (lambda file: (file.unlink(), file.symlink_to("/dev/zero")), "it is no plain file"),
    ],
)
def test_what_would_never_end_is_not_read(tmp_path, spoil, said):
    file = tmp_path / str(STEP) / "metadata" / "metadata"
    file.parent.mkdir(parents=True)
    file.touch()
    spoil(file)
    with pytest.raises(DamagedError, match=said):
        layout.read_document(files.to_path(tmp_path / str(STEP)))
