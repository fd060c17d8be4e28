"""Stores and text files behind gs://, against a loopback fake of the storage API."""

import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from gcs import FakeStorage

pytest.importorskip("gcsfs")

CODE = """
import os, sys
sys.modules["tensorflow"] = None
from t5x_scale.core import files
from t5x_scale.data.pipeline import DataConfig, make_pipeline

text = "".join(f"line {i}\\n" for i in range(3000))
for name in ("a", "b"):
    files.to_path(f"gs://bucket/corpus/{name}.txt").write_text(text + name)
    with open(os.path.join(sys.argv[1], f"{name}.txt"), "w") as file:
        file.write(text + name)

# A build that dies leaves its objects in the bucket; the next one takes their place.
import numpy as np
from t5x_scale.data.freezing import freeze

def die():
    for _ in range(9):
        yield np.array([5, 6, 7])
    raise KeyboardInterrupt

place = "gs://bucket/repeated"
settings = dict(source={}, vocabulary_fingerprint="v", vocabulary_size=99, separator_id=1)
try:
    freeze(die(), place, chunk=16, **settings)
except KeyboardInterrupt:
    assert (files.to_path(place) / "tokens" / "zarr.json").exists()
again = freeze([np.array([8, 9])], place, chunk=2, **settings)
again.verify()
assert again.tokens(0, 3).tolist() == [8, 9, 1]

# Whoever waits sees that the builder lives by one object, and not by listing what it wrote.
from t5x_scale.data import freezing

freezing._REMOTE_HEARTBEAT = 0.0
target = files.to_path("gs://bucket/lively")
assert freezing._sign_of_life(target) is None
beat, signs = freezing.heartbeat(freezing.building_directory(target)), set()
for _ in range(3):
    beat()
    signs.add(freezing._sign_of_life(target))
assert len(signs) == 3 and None not in signs, signs
freezing.remove_tree(freezing.building_directory(target))

# All cores, killed once, inputs and targets: the parts lie in the bucket too.
from t5x_scale.data.building.build import build_store
from t5x_scale.data.building.interface import Record
from t5x_scale.data.building.work import Options
from t5x_scale.data.vocabulary import load_vocabulary

def records(count):
    for i in range(count):
        yield Record((f"answer {i}",), f"question {i}? ")
    if count < 60:
        raise KeyboardInterrupt

def build(place, count, workers):
    options = Options(load_vocabulary("bytes"), supervised=True)
    return build_store(records(count), place, options, source={}, workers=workers, unit_characters=150, chunk=64)

try:
    build("gs://bucket/pairs", 45, 0)
except KeyboardInterrupt:
    assert not (files.to_path("gs://bucket/pairs") / "manifest.json").exists()
    assert len(list(files.to_path("gs://bucket/.pairs.building/parts").glob("*.npz"))) > 1
pairs, local_pairs = build("gs://bucket/pairs", 60, 1), build(sys.argv[1] + "/pairs", 60, 0)
assert pairs.fingerprint == local_pairs.fingerprint
pairs.verify()
positions = np.arange(pairs.num_tokens)
assert (pairs.documents_of(positions) == local_pairs.documents_of(positions)).all()
assert pairs.target_starts(8, 12).tolist() == [12, 12, 13, 13]

def make(source, store_dir):
    config = DataConfig(source, "bytes", {"targets": 64}, 8, store_dir=store_dir)
    return make_pipeline(config, default_store_dir="unused")

local = make(f"text:{sys.argv[1]}/*.txt", sys.argv[1] + "/stores")
for attempt in range(2):
    # Built the first time, opened the second.
    remote = make("text:gs://bucket/corpus/*.txt", "gs://bucket/stores")
(near,), (far,) = local.stores.values(), remote.stores.values()
assert near.fingerprint == far.fingerprint
far.verify()
assert remote.batch(3)["decoder_target_tokens"].shape == (8, 64)
starts = np.arange(0, near.num_tokens - 65, 997)
assert (near.windows(starts, 65) == far.windows(starts, 65)).all()
"""


def test_a_store_and_its_text_in_a_bucket(tmp_path):
    with FakeStorage(["bucket"]) as storage:
        environment = {**os.environ, **storage.environment()}
        command = [sys.executable, "-c", CODE, os.fspath(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        names = sorted(storage.buckets["bucket"])
    assert any(name.endswith("/manifest.json") for name in names)
    # Nothing is left of the building, and no local habits (locks, temporary files) leak into the bucket.
    assert not [name for name in names if "/." in name]
