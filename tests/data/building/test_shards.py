"""The shards of a source, one after another, are the source."""

import json
import pickle
from collections import Counter

import pytest
import seqio

from t5x_scale.core.errors import UserError
from t5x_scale.data.building.shards import TaskShards, TextShards, make_shards
from t5x_scale.data.catalog import Catalog
from t5x_scale.data.vocabulary import load_vocabulary
from tasks.common import TEXT_FEATURES
from tasks.jsonl import register_jsonl
from tasks.text_files import register_text_files

BYTES = load_vocabulary("bytes")


@pytest.fixture
def remove_tasks():
    before = set(seqio.TaskRegistry.names())
    yield
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


def read(source):
    source = pickle.loads(pickle.dumps(source))
    return [record for shard in source.list_shards() for record in source.read_shard(shard)]


@pytest.mark.parametrize("split", ["train", "validation", "all"])
@pytest.mark.parametrize("count", [3, 45])
def test_text_files(tmp_path, split, count):
    for number in range(count):
        (tmp_path / f"{number:02}.txt").write_text(f"file {number}\n" * 300)
    name = f"text:{tmp_path}/*.txt"
    source = TextShards(name, split, shard_bytes=150)
    assert len(source.list_shards()) > 1
    assert read(source) == list(Catalog(str(tmp_path / "stores"), BYTES).records(name, split))
    assert len(make_shards(name, split, BYTES).list_shards()) == 1


def test_tasks_that_are_files_in_order(tmp_path, remove_tasks):
    for number in range(3):
        lines = [json.dumps({"text": f"{number} {line}", "kind": line % 2}) for line in range(10 * number)]
        (tmp_path / f"part[{number}]*.jsonl").write_text("".join(f"{line}\n" for line in lines))
    register_jsonl("shards_jsonl", f"{tmp_path}/*.jsonl", where={"kind": 1})
    register_text_files("shards_text", {"train": [f"{tmp_path}/*2*.jsonl", f"{tmp_path}/*1*.jsonl"]})
    catalog = Catalog(str(tmp_path / "stores"), BYTES)
    for name, shards, count in (("shards_jsonl", 3, 15), ("shards_text", 2, 30)):
        source = make_shards(name, "train", BYTES)
        assert len(source.list_shards()) == shards
        assert read(source) == list(catalog.records(name, "train"))
        assert len(read(source)) == count


def test_other_tasks_have_one_reader_or_the_shards_of_their_source(tmp_path, remove_tasks):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("".join(f"{number} {line}\n" for line in range(40)))
    seqio.TaskRegistry.add(
        "shards_seqio",
        source=seqio.TextLineDataSource({"train": f"{tmp_path}/*.txt"}),
        preprocessors=[lambda dataset: dataset.map(lambda line: {"targets": line})],
        output_features=TEXT_FEATURES,
    )
    records = list(Catalog(str(tmp_path / "stores"), BYTES).records("shards_seqio", "train"))
    one = make_shards("shards_seqio", "train", BYTES)
    assert list(one.list_shards()) == [0]
    assert read(one) == records
    several = TaskShards("shards_seqio", "train", BYTES, by_shards=True)
    assert list(several.list_shards()) == [0, 1, 2]
    found = read(several)
    # The source reads its files in turns: the same documents in another order.
    assert found != records
    assert Counter(record.targets for record in found) == Counter(record.targets for record in records)


def test_a_pattern_without_a_file_is_refused_as_by_one_reader(tmp_path, remove_tasks):
    (tmp_path / "a.txt").write_text("a\n")
    register_text_files("shards_half", [f"{tmp_path}/a.txt", f"{tmp_path}/b.txt"])
    for read_all in (
        lambda: make_shards("shards_half", "train", BYTES).list_shards(),
        lambda: list(Catalog(str(tmp_path / "stores"), BYTES).records("shards_half", "train")),
    ):
        with pytest.raises(UserError, match=r"shards_half.* no file matches .*/b\.txt"):
            read_all()


def test_unknown_tasks_are_named():
    with pytest.raises(UserError, match="no task or mixture 'nowhere'"):
        make_shards("nowhere", "train", BYTES).list_shards()
