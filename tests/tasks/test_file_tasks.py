"""Tasks over files by path: text lines, whole files, JSON lines and TFRecords."""

import codecs
import gzip
import json
import sys

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data import seqio_source
from t5x_scale.data.seqio_source import iterate_documents, iterate_texts
from t5x_scale.data.vocabulary import load_vocabulary
from tasks.jsonl import register_jsonl, register_pile
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

    def test_empty_file_among_others_is_counted(self, tmp_path, caplog):
        for name, text in (("a", "one"), ("b", "")):
            (tmp_path / name).write_text(text)
        for document in ("line", "file"):
            register_text_files(NAME, [str(tmp_path / "a"), str(tmp_path / "b")], document=document)
            assert list(iterate_texts(NAME, "train")) == ["one"]
            assert "1 documents taken, left out: 1 empty files (first:" in caplog.text
            caplog.clear()
            seqio_source.seqio.TaskRegistry.remove(NAME)
        register_text_files(NAME, "x")

    def test_bytes_that_are_not_utf8(self, tmp_path, caplog):
        (tmp_path / "a").write_bytes(b"one\nca\xe9f\n")
        expected = {"replace": ["one", "ca\ufffdf"], "skip": ["one"]}
        for policy, texts in expected.items():
            register_text_files(NAME, str(tmp_path / "a"), bad_utf8=policy)
            assert list(iterate_texts(NAME, "train")) == texts
            assert "(first: " in caplog.text
            assert "a, line 2)" in caplog.text
            caplog.clear()
            seqio_source.seqio.TaskRegistry.remove(NAME)
        register_text_files(NAME, str(tmp_path / "a"), document="file", bad_utf8="error")
        with pytest.raises(UserError, match="not UTF-8: byte 6 is 0xe9"):
            list(iterate_texts(NAME, "train"))

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
    def test_text_field(self, tmp_path, packed, caplog):
        texts = ["one\ntwo", "caf\u00e9 \u2581", "lone \ud800"]
        content = "\n".join(json.dumps({"text": text, "meta": {"set": "x"}}) for text in texts) + "\n\n"
        name = "part.jsonl.gz" if packed else "part.jsonl"
        (tmp_path / name).write_bytes(gzip.compress(content.encode()) if packed else content.encode())
        register_jsonl(NAME, str(tmp_path / "part*"))
        assert list(iterate_texts(NAME, "train")) == ["one\ntwo", "caf\u00e9 \u2581", "lone ?"]
        assert "1 lines with half a character replaced by '?'" in caplog.text

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{broken", "part.jsonl, line 3: not valid JSON"),
            ('{"body": "x"}', "part.jsonl, line 3: no text in field 'text'"),
            ('{"text": 5}', "part.jsonl, line 3: no text in field 'text'"),
            ("[1]", "part.jsonl, line 3: not a JSON object"),
            ("[" * 100_000, "part.jsonl, line 3: not valid JSON"),
        ],
    )
    def test_bad_line_is_named(self, tmp_path, line, message):
        (tmp_path / "part.jsonl").write_text(f'{{"text": "fine"}}\n\n{line}\n')
        register_jsonl(NAME, {"train": str(tmp_path / "part.jsonl")})
        with pytest.raises(UserError, match=message) as caught:
            list(iterate_documents(NAME, "train", BYTES))
        assert "\n" not in str(caught.value)

    def test_bad_lines_may_be_left_out_and_are_counted(self, tmp_path, caplog):
        lines = ['{"text": "a"}', "{broken", '{"body": 1}', "[1]", "{also", '{"text": "b"}']
        (tmp_path / "part.jsonl").write_text("\n".join(lines))
        (tmp_path / "part0.jsonl").write_text("")
        register_jsonl(NAME, str(tmp_path / "part*.jsonl"), bad_line="skip")
        assert list(iterate_texts(NAME, "train")) == ["a", "b"]
        (record,) = [record for record in caplog.records if record.name.startswith("tasks")]
        message = record.getMessage()
        assert (record.levelname, "2 documents taken" in message) == ("WARNING", True)
        for part in ("2 lines not valid JSON", "part.jsonl, line 2", "1 lines without text in 'text'", "1 empty files"):
            assert part in message

    def test_bytes_that_are_not_utf8(self, tmp_path, caplog):
        (tmp_path / "part.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
        path = str(tmp_path / "part.jsonl")
        register_jsonl(NAME, path)
        with pytest.raises(UserError, match=r"part.jsonl, line 2: not UTF-8: byte 13 is 0xe9"):
            list(iterate_texts(NAME, "train"))
        for policy, expected in (("replace", ["a", "caf\ufffd"]), ("skip", ["a"])):
            seqio_source.seqio.TaskRegistry.remove(NAME)
            register_jsonl(NAME, path, bad_utf8=policy)
            assert list(iterate_texts(NAME, "train")) == expected
        assert "1 lines with bytes replaced (first:" in caplog.text
        assert "1 lines not UTF-8 (first:" in caplog.text

    def test_unknown_policy(self):
        with pytest.raises(ValueError, match="bad_line must be 'error' or 'skip', not 'warn'"):
            register_jsonl(NAME, "x", bad_line="warn")
        with pytest.raises(ValueError, match="bad_utf8 must be"):
            register_jsonl(NAME, "x", bad_utf8="ignore")
        with pytest.raises(ValueError, match="gives a set for 'set': give a list"):
            register_jsonl(NAME, "x", where={"meta": {"set": {"x", "y"}}})
        # For the fixture, which takes the task away.
        register_jsonl(NAME, "x")

    @pytest.mark.parametrize(
        ("where", "texts"),
        [
            ({"meta": {"set": "x"}}, ["0", "2"]),
            ({"meta": {"set": ["x", "z"]}}, ["0", "2", "3"]),
            ({"meta": {"set": "y"}, "good": True}, ["1"]),
            ({"meta": "x"}, ["4"]),
        ],
    )
    def test_filter(self, tmp_path, caplog, where, texts):
        metas = [{"set": "x"}, {"set": "y"}, {"set": "x", "more": 1}, {"set": "z"}, "x"]
        lines = [{"text": str(i), "meta": meta, "good": i < 2} for i, meta in enumerate(metas)]
        (tmp_path / "part.jsonl").write_text("\n".join(map(json.dumps, lines)))
        register_jsonl(NAME, str(tmp_path / "part.jsonl"), where=where)
        assert list(iterate_texts(NAME, "train")) == texts
        assert f"left out: {5 - len(texts)} lines do not match the filter" in caplog.text

    def test_more_documents_than_cross_at_once(self, tmp_path):
        texts = [f"{i}\0" for i in range(200)]
        (tmp_path / "part.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        register_jsonl(NAME, str(tmp_path / "part.jsonl"))
        assert list(iterate_texts(NAME, "train")) == texts

    def test_damaged_archive(self, tmp_path):
        packed = gzip.compress(b'{"text": "x"}\n' * 1000)
        (tmp_path / "part.jsonl.gz").write_bytes(packed[:-20])
        register_jsonl(NAME, str(tmp_path / "part.jsonl.gz"))
        with pytest.raises(UserError, match=r"part.jsonl.gz cannot be unpacked: .*ended"):
            list(iterate_texts(NAME, "train"))

    def test_a_mark_of_utf8_at_the_head_of_a_file(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"text": "a"}\n')
        register_jsonl(NAME, str(tmp_path / "a.jsonl"))
        assert list(iterate_texts(NAME, "train")) == ["a"]

    def test_zstd(self, tmp_path):
        """Two frames, as programs with several threads write them."""
        import zstandard

        frames = [zstandard.compress(f'{{"text": "{text}"}}\n'.encode()) for text in "ab"]
        (tmp_path / "part.jsonl.zst").write_bytes(b"".join(frames))
        register_jsonl(NAME, str(tmp_path / "part.jsonl.zst"))
        assert list(iterate_texts(NAME, "train")) == ["a", "b"]
        (tmp_path / "part.jsonl.zst").write_bytes(b"not packed")
        with pytest.raises(UserError, match=r"part.jsonl.zst cannot be unpacked"):
            list(iterate_texts(NAME, "train"))

    def test_zstd_without_a_package(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "zstandard", None)
        monkeypatch.setitem(sys.modules, "compression.zstd", None)
        (tmp_path / "part.jsonl.zst").write_bytes(b"x")
        register_jsonl(NAME, str(tmp_path / "part.jsonl.zst"))
        with pytest.raises(
            UserError, match=r"part.jsonl.zst needs the package zstandard: pip install 't5x_scale\[zstd\]'"
        ):
            list(iterate_texts(NAME, "train"))

    def test_another_field(self, tmp_path):
        (tmp_path / "part.jsonl").write_text('{"body": "x"}\n')
        register_jsonl(NAME, str(tmp_path / "part.jsonl"), text_field="body")
        assert list(iterate_texts(NAME, "train")) == ["x"]


def test_subsets_of_the_pile(tmp_path):
    lines = [{"text": name, "meta": {"pile_set_name": name}} for name in ("ArXiv", "Pile-CC", "Gutenberg (PG-19)")]
    (tmp_path / "part.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tasks = register_pile(str(tmp_path / "part.jsonl"), prefix=NAME)
    register_jsonl(NAME, "x")
    try:
        assert len(tasks) == 22
        for subset, name in (("Pile-CC", "pile_cc"), ("Gutenberg (PG-19)", "gutenberg_pg_19")):
            assert tasks[subset].name == f"{NAME}_{name}"
            assert list(iterate_texts(tasks[subset].name, "train")) == [subset]
        with pytest.raises(UserError, match="has no documents in split 'train'"):
            list(iterate_documents(tasks["FreeLaw"].name, "train", BYTES))
    finally:
        for task in tasks.values():
            seqio_source.seqio.TaskRegistry.remove(task.name)


class TestTfRecord:
    def test_text_field(self, tmp_path):
        write_record_file(tmp_path / "b", ["three"], "content")
        write_record_file(tmp_path / "a", ["one", "two\n"], "content")
        register_tfrecord(NAME, str(tmp_path / "*"), text_field="content")
        assert list(iterate_texts(NAME, "train")) == ["one", "two\n", "three"]

    def test_missing_field_empty_and_damaged_file(self, tmp_path, caplog):
        write_record_file(tmp_path / "a", ["one"], "content")
        register_tfrecord(NAME, {"train": str(tmp_path / "a"), "validation": str(tmp_path / "torn")})
        with pytest.raises(UserError, match="text"):
            list(iterate_texts(NAME, "train"))
        (tmp_path / "empty").write_bytes(b"")
        seqio_source.seqio.TaskRegistry.remove(NAME)
        register_tfrecord(NAME, [str(tmp_path / "empty"), str(tmp_path / "a")], text_field="content")
        assert list(iterate_texts(NAME, "train")) == ["one"]
        assert "left out: 1 empty files (first:" in caplog.text
        seqio_source.seqio.TaskRegistry.remove(NAME)
        register_tfrecord(NAME, {"validation": str(tmp_path / "torn")})
        (tmp_path / "torn").write_bytes((tmp_path / "a").read_bytes()[:-3])
        with pytest.raises(UserError, match=r"cannot read task .*torn|truncated|corrupted"):
            list(iterate_texts(NAME, "validation"))
