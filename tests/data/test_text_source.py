import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data import text_source
from t5x_scale.data.vocabulary import load_vocabulary

BYTES = load_vocabulary("bytes")


def texts(name, split):
    return [BYTES.decode(document.tolist()) for document in text_source.iterate_documents(name, split, BYTES)]


def write(directory, contents):
    for name, content in contents.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return f"text:{directory}/**/*.txt"


@settings(max_examples=40, deadline=None)
@given(text=st.text(min_size=1, max_size=300).filter(lambda t: t.encode("utf-8", "ignore").decode() == t))
def test_few_files_are_split_at_their_ends_without_loss(tmp_path_factory, text):
    name = write(tmp_path_factory.mktemp("t"), {"a.txt": text})
    assert texts(name, "all") == [text]
    assert "".join(texts(name, "train") + texts(name, "validation")) == text


def test_the_held_out_end_begins_at_a_line(tmp_path):
    text = "".join(f"line {i}\n" for i in range(1000))
    name = write(tmp_path, {"a.txt": text})
    (held_out,) = texts(name, "validation")
    assert held_out.startswith("line 9")
    assert 0.03 < len(held_out) / len(text) <= 0.05


def test_many_files_are_held_out_whole(tmp_path):
    contents = {f"{i % 3}/{i}.txt": f"document {i}" for i in range(60)}
    name = write(tmp_path / "here", contents)
    train, validation = texts(name, "train"), texts(name, "validation")
    assert len(validation) == 3
    assert sorted(train + validation) == sorted(contents.values())
    # A corpus that is moved keeps its split.
    assert texts(write(tmp_path / "there", contents), "validation") == validation


def test_pieces_do_not_break_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(text_source, "PIECE_BYTES", 7)
    text = "añ€😀" * 20 + "\n" + "€" * 9 + "\n\n" + "x" * 30
    name = write(tmp_path, {"a.txt": text})
    assert texts(name, "all") == [text]
    assert "".join(texts(name, "train") + texts(name, "validation")) == text


def test_documents_are_int32_in_the_order_of_names(tmp_path):
    name = write(tmp_path, {"b.txt": "two", "a.txt": "one", "ignored.md": "no"})
    documents = list(text_source.iterate_documents(name, "all", BYTES))
    assert all(document.dtype == np.int32 for document in documents)
    assert texts(name, "all") == ["one", "two"]


def test_a_single_file_by_path(tmp_path):
    write(tmp_path, {"a.txt": "hello"})
    assert texts(f"text:{tmp_path}/a.txt", "all") == ["hello"]
    assert text_source.is_text_source("text:a")
    assert not text_source.is_text_source("c4")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, r"no file matches '.*\*\.txt'"),
        ({"a.txt": "", "b.txt": ""}, r"a\.txt is empty, and so are 1 others"),
        ({"a.txt": b"ab\n\xff\n"}, r"a\.txt is not UTF-8: byte 3 is 0xff"),
        ({"a.txt": b"abc\xe2\x82"}, r"a\.txt is not UTF-8: byte 3 is 0xe2"),
    ],
)
def test_bad_files_are_named(tmp_path, contents, message):
    name = write(tmp_path, contents)
    with pytest.raises(UserError, match=message):
        list(text_source.iterate_documents(name, "all", BYTES))


@pytest.mark.parametrize("count", [3, 30])
def test_an_empty_file_is_a_document_without_a_token(tmp_path, caplog, count):
    contents = {f"{i:02d}.txt": f"file {i}\n" * 40 for i in range(count)}
    name = write(tmp_path, contents)
    whole = {split: texts(name, split) for split in text_source.SPLITS}
    write(tmp_path, {"00a.txt": "", "99.txt": ""})
    for split, empty in {"all": 2, "train": 2, "validation": 0}.items():
        found = texts(name, split)
        assert [text for text in found if text] == whole[split]
        assert len(found) == len(whole[split]) + empty
    text_source.describe_source(name, "all")
    assert caplog.messages == [f"2 of {count + 2} files behind '{name}' are empty, the first is {tmp_path}/00a.txt"]


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    name = write(tmp_path, {"a.txt": "x" * 100})

    def refuse(*unused):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(files.to_path(tmp_path)), "open", refuse)
    for attempt in (lambda: texts(name, "train"), lambda: text_source.describe_source(name, "all")):
        with pytest.raises(UserError, match=r"cannot read .*a\.txt: Permission denied"):
            attempt()


def test_the_byte_named_is_counted_from_the_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(text_source, "PIECE_BYTES", 5)
    name = write(tmp_path, {"a.txt": b"abc\ndef\nghi\n\xff"})
    with pytest.raises(UserError, match="byte 12 is 0xff"):
        list(text_source.iterate_documents(name, "all", BYTES))


def test_unknown_split(tmp_path):
    name = write(tmp_path, {"a.txt": "x"})
    with pytest.raises(UserError, match=r"no split 'valid' \(did you mean 'validation'\?\)"):
        texts(name, "valid")


def test_changes_are_noticed(tmp_path):
    name = write(tmp_path, {"a.txt": "one", "b.txt": "two"})
    source = text_source.describe_source(name, "train")
    assert (source["files"], source["bytes"]) == (2, 6)
    text_source.check_unchanged(name, source, "stores/s")
    os.utime(tmp_path / "a.txt", (1, 1))
    text_source.check_unchanged(name, source, "stores/s")
    (tmp_path / "a.txt").write_text("ONE")
    with pytest.raises(UserError, match="token store stores/s was frozen: a run in progress needs the old files"):
        text_source.check_unchanged(name, source, "stores/s")
    write(tmp_path, {"a.txt": "one", "c.txt": "x"})
    with pytest.raises(UserError, match="changed since"):
        text_source.check_unchanged(name, source, "stores/s")
    for file in tmp_path.iterdir():
        file.unlink()
    text_source.check_unchanged(name, source, "stores/s")
