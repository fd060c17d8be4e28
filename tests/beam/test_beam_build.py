"""A store built with Apache Beam has the bytes of one built without. `make beam` runs this in its own environment."""

import itertools
import json
import os
import random
import shutil

import numpy as np
import pytest

pytest.importorskip("apache_beam", reason="Apache Beam has an environment of its own: make beam", exc_type=ImportError)

from t5x_scale.core.errors import UserError
from t5x_scale.data.building import beam
from t5x_scale.data.building.build import build_store, parts_directory
from t5x_scale.data.building.interface import Curation, Record
from t5x_scale.data.building.parts import list_parts
from t5x_scale.data.building.shards import GivenShards, make_shards
from t5x_scale.data.building.work import Options
from t5x_scale.data.catalog import Catalog
from t5x_scale.data.curation.decontamination import Decontamination
from t5x_scale.data.curation.exact_duplicates import ExactDeduplicator, ExactSigner
from t5x_scale.data.curation.filters import Length
from t5x_scale.data.curation.minhash import MinHashSigner
from t5x_scale.data.curation.near_duplicates import NearDeduplicator
from t5x_scale.data.vocabulary import load_vocabulary

BYTES = load_vocabulary("bytes")
WORDS = [f"word{number}" for number in range(3000)]
SOURCE = {"task": "made up", "split": "train"}
CURATION = Curation(
    text_filters=(Length(5, None), Decontamination.from_texts({"quiz": [" ".join(WORDS[:20])]})),
    signers=(ExactSigner(), MinHashSigner()),
    deduplicators=(ExactDeduplicator(), NearDeduplicator()),
)


class KeepEvenDocuments:
    """A search of another kind: it sees the whole corpus at once."""

    reason = "odd"

    def __call__(self, parts):
        keeps, number = [], 0
        for part in parts():
            keeps.append(np.arange(number, number + len(part["text_hash"])) % 2 == 0)
            number += len(keeps[-1])
        return keeps

    def describe(self):
        return {"deduplicator": "KeepEvenDocuments"}


def make_documents():
    """Texts with copies, near copies, one that overlaps with the quiz, short and empty ones."""
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=generator.randrange(30, 120))) for _ in range(40)]
    near = [" ".join([*text.split()[:-1], "end"]) for text in texts[:10]]
    return [*texts, "", "too short", *texts[5:15], " ".join(WORDS[:30]), *near, texts[0] + " \n"]


def as_shards(records, shards):
    cuts = np.linspace(0, len(records), shards + 1).astype(int)
    return GivenShards(tuple(tuple(records[first:stop]) for first, stop in itertools.pairwise(cuts)))


def read_all(directory):
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, directory)] = file.read()
    return found


def check_equal(tmp_path, records, options, shards=3):
    settings = {"source": SOURCE, "licence": "ours", "chunk": 1000}
    here = build_store(iter(records), tmp_path / "here", options, workers=0, **settings)
    there = beam.build_with_beam(
        as_shards(records, shards), tmp_path / "there", options, unit_characters=500, **settings
    )
    assert read_all(tmp_path / "there") == read_all(tmp_path / "here")
    assert sorted(os.listdir(tmp_path)) == ["here", "there"]
    there.verify()
    return here


def test_plain(tmp_path):
    store = check_equal(tmp_path, [Record((text,)) for text in make_documents()], Options(BYTES))
    assert store.num_documents == 63
    assert store.num_tokens > 10_000


def test_supervised(tmp_path):
    records = [Record((text,), f"question {number}: ") for number, text in enumerate(make_documents())]
    assert check_equal(tmp_path, records, Options(BYTES, supervised=True)).is_supervised


def test_curated(tmp_path):
    store = check_equal(tmp_path, [Record((text,)) for text in make_documents()], Options(BYTES, CURATION))
    report = store.manifest.report
    assert report["filtered: few words"] == 1
    assert report["filtered: overlap with quiz"] == 1
    assert report["exact duplicate"] == 11
    assert 8 <= report["near duplicate"] <= 10


def test_long_documents_and_a_search_of_another_kind(tmp_path):
    records = []
    for text in make_documents():
        records += [Record((text[:100],), ends=False), Record((text[100:200],), ends=False), Record((text[200:],))]
    check_equal(tmp_path / "plain", records, Options(BYTES), shards=1)
    curation = Curation(signers=(ExactSigner(),), deduplicators=(KeepEvenDocuments(), ExactDeduplicator()))
    check_equal(tmp_path / "curated", records, Options(BYTES, curation), shards=1)


def test_a_build_that_failed_goes_on(tmp_path):
    good = [Record((text,)) for text in make_documents()]
    bad = Record((np.array([BYTES.size]),))
    options = Options(BYTES)
    with pytest.raises(UserError) as refused:
        beam.build_with_beam(
            as_shards([*good, bad], 4), tmp_path / "store", options, source=SOURCE, unit_characters=500
        )
    # As the worker said it, without what the runner adds.
    size = BYTES.size
    assert str(refused.value).endswith(f"ids from {size} to {size}, but the vocabulary 'bytes' has {size} ids")
    assert not (tmp_path / "store").exists()
    before = {info.index: os.stat(parts_directory(tmp_path / "store") / f"part-{info.index:08d}.npz").st_mtime_ns
              for info in list_parts(parts_directory(tmp_path / "store")).values()}  # fmt: skip
    made = []
    original = beam.write_part

    def write_part(directory, index, *rest, **more):
        made.append(index)
        return original(directory, index, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam, "write_part", write_part)
        store = beam.build_with_beam(
            as_shards(good, 4), tmp_path / "store", options, source=SOURCE, unit_characters=500
        )
    assert before
    assert not set(made) & set(before)
    assert store.num_documents == 63


def test_refusals(tmp_path):
    options = Options(BYTES)
    with pytest.raises(
        UserError, match=r"^the data source 'made up', split 'train' gave no documents \(read 1, empty 1\)$"
    ):
        beam.build_with_beam(as_shards([Record(("",))], 1), tmp_path / "store", options, source=SOURCE)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="must not exist or be empty"):
        beam.build_with_beam(as_shards([], 1), tmp_path / "taken", options, source=SOURCE)
    with pytest.raises(UserError, match=r"^Apache Beam refuses its options: Unexpected pipeline runner: NoRunner"):
        beam.build_with_beam(
            as_shards([], 1), tmp_path / "store", options, source=SOURCE, pipeline_options=["--runner=NoRunner"]
        )


def test_several_processes(tmp_path):
    """Everything that travels can be pickled."""
    records = [Record((text,)) for text in make_documents()]
    options = Options(BYTES, CURATION)
    settings = {"source": SOURCE, "chunk": 1000}
    build_store(iter(records), tmp_path / "here", options, workers=0, **settings)
    beam.build_with_beam(
        as_shards(records, 3),
        tmp_path / "there",
        options,
        pipeline_options=["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
        unit_characters=500,
        **settings,
    )
    assert read_all(tmp_path / "there") == read_all(tmp_path / "here")


def test_text_files_and_tasks(tmp_path):
    """Read shard by shard, they are the stores that the catalogue builds on this machine."""
    from tasks.jsonl import register_jsonl

    for number in range(4):
        lines = [json.dumps({"text": f"file {number}, line {line}"}) for line in range(30)]
        (tmp_path / f"{number}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    register_jsonl("beam_jsonl", f"{tmp_path}/*.jsonl")
    catalog = Catalog(str(tmp_path / "here"), BYTES)
    for name in (f"text:{tmp_path}/*.jsonl", "beam_jsonl"):
        here = catalog.build(name, "train")
        shards = make_shards(name, "train", BYTES)
        there = beam.build_with_beam(
            shards, tmp_path / "there", Options(BYTES), source=catalog.describe(name, "train"), unit_characters=500
        )
        assert read_all(there.directory) == read_all(here.directory)
        shutil.rmtree(tmp_path / "there")
