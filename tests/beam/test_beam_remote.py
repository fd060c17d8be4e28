"""Beam builds a store behind gs://, against a loopback fake of the storage API."""

import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from gcs import FakeStorage

pytest.importorskip("apache_beam", reason="Apache Beam has an environment of its own: make beam", exc_type=ImportError)

CODE = """
import sys
from t5x_scale.core import files
from t5x_scale.data.building.beam import build_with_beam
from t5x_scale.data.building.build import build_store
from t5x_scale.data.building.interface import Curation
from t5x_scale.data.building.shards import make_shards
from t5x_scale.data.building.work import Options
from t5x_scale.data.curation.exact_duplicates import ExactDeduplicator, ExactSigner
from t5x_scale.data.text_source import iterate_records
from t5x_scale.data.vocabulary import load_vocabulary

for number in range(6):
    files.to_path(f"gs://bucket/corpus/{number}.txt").write_text(f"text {number % 5}\\n" * 40)
vocabulary, name = load_vocabulary("bytes"), "text:gs://bucket/corpus/*.txt"
options = Options(vocabulary, Curation(signers=(ExactSigner(),), deduplicators=(ExactDeduplicator(),)))
settings = {"source": {"task": name, "split": "all"}, "chunk": 300, "unit_characters": 500}
build_store(iterate_records(name, "all"), "gs://bucket/here", options, workers=0, **settings)
# What a build that was killed left in its place.
files.to_path("gs://bucket/there/tokens/zarr.json").write_text("{}")
there = build_with_beam(make_shards(name, "all", vocabulary), "gs://bucket/there", options, **settings)
there.verify()
assert there.num_documents == 5
"""


def test_a_store_in_a_bucket_has_the_objects_of_a_local_build(tmp_path):
    with FakeStorage(["bucket"]) as storage:
        environment = {**os.environ, **storage.environment()}
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        objects = storage.buckets["bucket"]
        here, there = (
            {name.split("/", 1)[1]: stored.data for name, stored in objects.items() if name.startswith(place)}
            for place in ("here/", "there/")
        )
    assert len(there) > 4
    assert there == here
    assert not [name for name in objects if "/." in name or name.startswith(".")]
