"""Records of tasks and of text files."""

import numpy as np
import pytest

pytest.importorskip("seqio")

from t5x_scale.core.errors import UserError
from t5x_scale.data import seqio_source, text_source
from t5x_scale.data.building.units import join_records
from t5x_scale.data.seqio_source import SeqioVocabulary, iterate_documents, iterate_records, seqio, tf
from t5x_scale.data.vocabulary import load_vocabulary

BYTES = load_vocabulary("bytes")
TEXT = seqio.Feature(seqio.PassThroughVocabulary(256), add_eos=False, dtype=tf.string, rank=0)
IDS = seqio.Feature(SeqioVocabulary(BYTES), add_eos=True)


@pytest.fixture
def register():
    def add(columns, features, preprocessors=()):
        def make_dataset(split, shuffle_files=False, seed=None):
            return tf.data.Dataset.from_tensor_slices(columns)

        source = seqio.FunctionDataSource(make_dataset, splits=("train",), num_input_examples={"train": 3})
        seqio.TaskRegistry.add(
            "records_task", source=source, preprocessors=list(preprocessors), output_features=features
        )
        return "records_task"

    yield add
    seqio.TaskRegistry.remove("records_task")


def test_text_is_left_to_others(register):
    task = register({"targets": ["ü", "", b"\xff"]}, {"targets": TEXT})
    records = list(iterate_records(task, "train", BYTES))
    assert [record.targets for record in records] == [("ü".encode(),), (b"",), (b"\xff",)]
    assert all(record.ends and record.inputs is None for record in records)
    assert not seqio_source.is_supervised(task)
    assert seqio_source.count_examples(task, "train") == 3
    assert seqio_source.count_examples(task, "test") is None


def test_inputs_stay_apart(register):
    task = register({"inputs": ["2+2=", ""], "targets": ["4", "5"]}, {"inputs": TEXT, "targets": TEXT})
    assert [(record.inputs, record.targets) for record in iterate_records(task, "train", BYTES)] == [
        (b"2+2=", (b"4",)),
        (b"", (b"5",)),
    ]
    assert seqio_source.is_supervised(task)


def test_ids_come_without_their_end(register):
    steps = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    task = register({"inputs": ["ab", "c"], "targets": ["d", ""]}, {"inputs": IDS, "targets": IDS}, steps)
    records = list(iterate_records(task, "train", BYTES))
    assert [BYTES.decode(record.inputs) for record in records] == ["ab", "c"]
    assert [BYTES.decode(record.targets[0]) for record in records] == ["d", ""]
    # The same ids as a stream of documents has.
    documents = list(iterate_documents(task, "train", BYTES))
    for record, document in zip(records, documents, strict=True):
        np.testing.assert_array_equal(np.concatenate(record.pieces), document)


def test_a_task_of_another_vocabulary_and_one_without_documents(register):
    task = register({"targets": ["ab"]}, {"targets": IDS}, [seqio.preprocessors.tokenize])
    with pytest.raises(UserError, match=r"which is not the run's vocabulary 'stdlib_8k'"):
        next(iterate_records(task, "train", load_vocabulary("stdlib_8k")))
    with pytest.raises(UserError, match="has no split 'test'"):
        next(iterate_records(task, "test", BYTES))
    seqio.TaskRegistry.remove(task)
    register({"targets": np.zeros(0, "U1")}, {"targets": TEXT})
    with pytest.raises(UserError, match="'records_task' has no documents in split 'train'"):
        next(iterate_records(task, "train", BYTES))


def test_a_long_file_comes_in_stretches(tmp_path, monkeypatch):
    monkeypatch.setattr(text_source, "PIECE_BYTES", 100)
    text = "".join(f"line {i} of ü\n" for i in range(100))
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(text + name)
    records = list(text_source.iterate_records(f"text:{tmp_path}/*.txt", "all"))
    assert all(len(record.targets[0].encode()) < 200 for record in records)
    assert sum(record.ends for record in records) == 2
    assert ["".join(record.targets) for record in join_records(records)] == [text + "a", text + "b"]
    assert text_source.count_bytes(f"text:{tmp_path}/*.txt", "all") == 2 * len(text.encode()) + 2
