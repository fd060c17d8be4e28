"""Smaller documents from strangers: what they say, or UserError; what only tells of a run is read past its damage."""

import json
import logging

import numpy as np
import pytest
from mutations import INPUTS, mutate_bytes, mutate_tree, random_bytes, to_json

from t5x_scale.checkpoint.timeline import Intervention, append_intervention, load_interventions
from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data import store_manifest
from t5x_scale.data.mapped_array import MappedArray
from t5x_scale.data.store_manifest import Manifest, read_manifest
from t5x_scale.data.vocabulary import vocabulary_from_files
from t5x_scale.interop.families import FAMILIES
from t5x_scale.interop.registry import find_family, to_config
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.config import ModelConfig
from t5x_scale.monitor.metric_log import format_event, format_metrics, read_metrics
from t5x_scale.monitor.phases import read_phases
from tests.fakes.small_tokenizers import byte_level_json

FEW = INPUTS // 5
MANIFEST = {
    "vocabulary_fingerprint": "f",
    "vocabulary_size": 9,
    "separator_id": 1,
    "dtype": "uint16",
    "num_tokens": 8,
    "num_documents": 2,
    "empty_documents": 0,
    "checksums": (1,),
    "documents_checksum": 2,
    "source": {"task": "t"},
}


def spoil(generator, tree, lines=1):
    """`lines` lines of JSON, one of them spoiled in its structure or its bytes."""
    if generator.random() < 0.1:
        return random_bytes(generator)
    whole = [json.dumps(tree)] * (lines - 1)
    whole.insert(generator.randrange(lines), to_json(mutate_tree(generator, tree)))
    data = "".join(f"{line}\n" for line in whole).encode()
    return mutate_bytes(generator, data) if generator.random() < 0.3 else data


def test_metrics(try_inputs, directory):
    lines = [
        json.loads(format_event(3, 9.0, "start", {"devices": 1})),
        json.loads(format_metrics(4, 9.5, {"a/b": 0.1})),
    ]
    (directory / "metrics").mkdir()

    def read(data):
        (directory / "metrics" / "metrics.jsonl").write_bytes(data)
        for series in read_metrics(directory).series.values():
            assert len(series.steps) == len(series.values)
            assert np.all(np.diff(series.steps) > 0)

    try_inputs(lambda generator: spoil(generator, generator.choice(lines), 3), read, (), FEW)


def test_interventions(try_inputs, directory):
    append_intervention(directory, Intervention(1, 52, "a spike", 50, ((416, 512),), 1.7e9))
    file = directory / "interventions.jsonl"
    line = json.loads(file.read_text())

    def read(data):
        file.write_bytes(data)
        for found in load_interventions(directory):
            assert all(0 <= first < end < 2**62 for first, end in found.skip_rows)

    try_inputs(lambda generator: spoil(generator, line), read, UserError, FEW)


def test_phases(try_inputs, directory):
    line = {"time": 9.0, "at": 0.5, "phase": "step", "step": 4}
    (directory / "health").mkdir()

    def read(data):
        (directory / "health" / "phases_0.jsonl").write_bytes(data)
        assert all(isinstance(found["phase"], str) for found in read_phases(directory))

    try_inputs(lambda generator: spoil(generator, line, 3), read, (), FEW)


def test_manifests_of_token_stores(try_inputs, directory):
    def make(generator):
        value = mutate_tree(generator, json.loads(json.dumps({**Manifest(**MANIFEST).__dict__, "fingerprint": ""})))
        try:  # Whoever forges a manifest can make its fingerprint too.
            content = Manifest(**{**value, "checksums": tuple(value["checksums"])}).content_fingerprint()
            value["fingerprint"] = content
        except (TypeError, KeyError, ValueError, AttributeError):
            pass
        return to_json(value).encode() if generator.random() < 0.8 else spoil(generator, MANIFEST)

    def read(data):
        (directory / store_manifest.MANIFEST).write_bytes(data)
        manifest = read_manifest(files.to_path(directory))
        assert 0 <= manifest.num_tokens < 2**62
        assert np.dtype(manifest.dtype).itemsize in (2, 4)

    try_inputs(make, read, UserError, FEW)


@pytest.mark.parametrize("chunk", [0, -1, 2**62, "8", None, 1.5, [8]])
def test_chunks_of_token_stores(tmp_path, chunk):
    (tmp_path / "zarr.json").write_text(json.dumps({"chunk_grid": {"configuration": {"chunk_shape": [chunk]}}}))
    with pytest.raises(UserError, match="is damaged"):
        MappedArray(files.to_path(tmp_path), np.dtype(np.uint16), 100)


def test_configurations_of_models(try_inputs):
    small = ModelConfig(
        num_layers=1, embed_dim=4, mlp_dim=4, num_heads=1, num_kv_heads=1, head_dim=4, vocab_size=5, dtype="float32"
    )
    config = to_config(FAMILIES["llama"], Architecture(small, positions="rope"))

    def read(data):
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UserError("not JSON") from error
        if not isinstance(value, dict):
            raise UserError("no object")
        assert type(find_family(value).to_architecture(value).config.num_layers) is int

    try_inputs(lambda generator: spoil(generator, config), read, UserError, FEW)


def test_tokenizers(try_inputs, caplog):
    caplog.set_level(logging.ERROR)
    tokenizer = json.loads(byte_level_json(300))

    def read(data):
        vocabulary = vocabulary_from_files({"tokenizer.json": data})
        assert isinstance(vocabulary.decode(vocabulary.encode("a b")), str)

    try_inputs(lambda generator: spoil(generator, tokenizer), read, UserError, FEW // 2)
