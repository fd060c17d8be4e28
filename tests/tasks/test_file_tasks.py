"""Tasks over files by path: text lines, whole files, JSON lines and TFRecords."""

import gzip
import json

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data import seqio_source
from t5x_scale.data.seqio_source import iterate_documents, iterate_texts
from t5x_scale.data.vocabulary import load_vocabulary
from tasks.jsonl import register_jsonl
from tasks.text_files import register_text_files
from tasks.tfrecord import register_tfrecord

tf = seqio_source.tf
BYTES = load_vocabulary("bytes")
NAME = "files_test_task"


@pytest.fixture(autouse=True)
def forget_the_task():
    yield
    seqio_source.seqio.TaskRegistry.remove(NAME)


def write_record_file(path, examples, field="text"):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for text in examples:
            value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
            features = tf.train.Features(feature={field: value})
            writer.write(tf.train.Example(features=features).SerializeToString())


class TestTextFiles:
    def test_lines_in_order_of_file_names(self, tmp_path):
        (tmp_path / "b.txt").write_text("three\r\n four \n")
        (tmp_path / "a.txt").write_text("one\n\ntwo caf\u00e9")
        register_text_files(NAME, str(tmp_path / "*.txt"))
        assert list(iterate_texts(NAME, "train")) == ["one", "two caf\u00e9", "three", " four "]

    def test_whole_files_and_splits(self, tmp_path):
        for name in ("a", "b", "c"):
            (tmp_path / name).write_text(f"{name}\n\n{name}\n")
        splits = {"train": [str(tmp_path / "a"), str(tmp_path / "b")], "validation": str(tmp_path / "c")}
        register_text_files(NAME, splits, document="file")
        assert list(iterate_texts(NAME, "train")) == ["a\n\na\n", "b\n\nb\n"]
        assert list(iterate_texts(NAME, "validation")) == ["c\n\nc\n"]
        with pytest.raises(UserError, match="no split 'test'"):
            next(iterate_texts(NAME, "test"))

    def test_nothing_is_read_when_registering(self, tmp_path):
        register_text_files(NAME, str(tmp_path / "absent.txt"))
        with pytest.raises(UserError, match=r"no file matches .*absent\.txt"):
            next(iterate_documents(NAME, "train", BYTES))

    def test_empty_file(self, tmp_path):
        (tmp_path / "empty.txt").write_text("\n\n")
        register_text_files(NAME, str(tmp_path / "empty.txt"))
        with pytest.raises(UserError, match="has no documents in split 'train'"):
            next(iterate_documents(NAME, "train", BYTES))

    def test_unknown_kind_of_document(self):
        with pytest.raises(ValueError, match="'line' or 'file'"):
            register_text_files(NAME, "x", document="page")

    def test_other_files_have_another_fingerprint(self, tmp_path):
        register_text_files(NAME, "one.txt")
        one = seqio_source.document_source_fingerprint(NAME, "train")
        seqio_source.seqio.TaskRegistry.remove(NAME)
        register_text_files(NAME, "two.txt")
        assert seqio_source.document_source_fingerprint(NAME, "train") != one


class TestJsonl:
    @pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
    def test_text_field(self, tmp_path, packed):
        texts = ["one\ntwo", "caf\u00e9 \u2581", "lone \ud800"]
        content = "\n".join(json.dumps({"text": text, "meta": {"set": "x"}}) for text in texts) + "\n\n"
        name = "part.jsonl.gz" if packed else "part.jsonl"
        (tmp_path / name).write_bytes(gzip.compress(content.encode()) if packed else content.encode())
        register_jsonl(NAME, str(tmp_path / "part*"))
        assert list(iterate_texts(NAME, "train")) == ["one\ntwo", "caf\u00e9 \u2581", "lone ?"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{broken", "part.jsonl, line 3: not valid JSON"),
            ('{"body": "x"}', "part.jsonl, line 3: no text in field 'text'"),
            ('{"text": 5}', "part.jsonl, line 3: no text in field 'text'"),
            ("[1]", "part.jsonl, line 3: no text in field 'text'"),
        ],
    )
    def test_bad_line_is_named(self, tmp_path, line, message):
        (tmp_path / "part.jsonl").write_text(f'{{"text": "fine"}}\n\n{line}\n')
        register_jsonl(NAME, {"train": str(tmp_path / "part.jsonl")})
        with pytest.raises(UserError, match=message) as caught:
            list(iterate_documents(NAME, "train", BYTES))
        assert "\n" not in str(caught.value)

    def test_another_field(self, tmp_path):
        (tmp_path / "part.jsonl").write_text('{"body": "x"}\n')
        register_jsonl(NAME, str(tmp_path / "part.jsonl"), text_field="body")
        assert list(iterate_texts(NAME, "train")) == ["x"]


class TestTfRecord:
    def test_text_field(self, tmp_path):
        write_record_file(tmp_path / "b", ["three"], "content")
        write_record_file(tmp_path / "a", ["one", "two\n"], "content")
        register_tfrecord(NAME, str(tmp_path / "*"), text_field="content")
        assert list(iterate_texts(NAME, "train")) == ["one", "two\n", "three"]

    def test_missing_field_and_damaged_file(self, tmp_path):
        write_record_file(tmp_path / "a", ["one"], "content")
        register_tfrecord(NAME, {"train": str(tmp_path / "a"), "validation": str(tmp_path / "torn")})
        with pytest.raises(UserError, match="text"):
            list(iterate_texts(NAME, "train"))
        (tmp_path / "torn").write_bytes((tmp_path / "a").read_bytes()[:-3])
        with pytest.raises(UserError, match=r"cannot read task .*torn|truncated|corrupted"):
            list(iterate_texts(NAME, "validation"))
