"""Code: languages by extension, copyleft left out and counted."""

import json

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data import seqio_source
from t5x_scale.data.seqio_source import iterate_texts
from tasks.code_kinds import EXTENSIONS, extension_of, extensions_of, is_copyleft
from tasks.json_lines import Policy
from tasks.source_code import register_code, register_code_files

NAME = "source_code_test"
ROWS = (
    {"content": "a", "path": "x/a.py", "license": "mit"},
    {"content": "b", "path": "x/b.py", "license": "GPL-3.0-only"},
    {"content": "c", "path": "x/C.CPP", "license": ["MIT", "LGPL-2.1"]},
    {"content": "d", "path": "x/d.py"},
    {"content": "e", "path": "x/e.py", "license": []},
    {"content": "f", "path": "x/f.rs", "license": ["Apache-2.0", "MIT"]},
    {"content": "g", "path": "x/g.bin", "license": "mit"},
    {"content": "h", "path": "Makefile", "license": "mit"},
)


@pytest.fixture(autouse=True)
def forget_the_task():
    yield
    if NAME in seqio_source.seqio.TaskRegistry.names():
        seqio_source.seqio.TaskRegistry.remove(NAME)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "code.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.mark.parametrize(
    "licence",
    ["gpl-3.0", "AGPL-3.0-or-later", "MIT OR GPL-2.0", "(lgpl-2.1+ AND mit)", "mpl-2.0", "EUPL-1.2", "cc-by-sa-4.0",
     "GNU General Public License v2", "Lesser General Public License"],
)  # fmt: skip
def test_copyleft(licence):
    assert is_copyleft(licence)


@pytest.mark.parametrize("licence", ["mit", "Apache-2.0", "BSD-3-Clause", "cc0-1.0", "isc", "simpl-1.0", "0BSD", ""])
def test_not_copyleft(licence):
    assert not is_copyleft(licence)


def test_languages():
    assert extension_of("A/b.c/Main.CPP") == "cpp"
    assert extension_of("Makefile") == ""
    assert extensions_of(["python", "c"]) == ("c", "h", "py")
    # An extension tells one language.
    assert len(extensions_of(None)) == len(set(extensions_of(None))) == sum(map(len, EXTENSIONS.values()))
    with pytest.raises(ValueError, match="no language 'pyhton'; known are assembly, c"):
        extensions_of(["pyhton"])


def test_lines(file, caplog):
    register_code(NAME, file)
    assert list(iterate_texts(NAME, "train")) == ["a", "f"]
    for part in ("2 files under copyleft", "2 files without a licence", "2 files in other languages", "line 2)"):
        assert part in caplog.text


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"copyleft": "keep"}, "abcf"),
        ({"unlicensed": "keep"}, "adef"),
        ({"copyleft": "keep", "unlicensed": "keep", "languages": ["python"]}, "abde"),
        ({"licence_field": "absent", "unlicensed": "keep", "languages": ["rust"]}, "f"),
    ],
)
def test_options(file, options, texts):
    register_code(NAME, file, **options)
    assert "".join(iterate_texts(NAME, "train")) == texts


def test_line_without_a_path(tmp_path, caplog):
    (tmp_path / "code.jsonl").write_text('{"content": "x", "license": "mit"}\n{"path": "y"}\n' + json.dumps(ROWS[0]))
    register_code(NAME, str(tmp_path / "code.jsonl"))
    with pytest.raises(UserError, match=r"code.jsonl, line 1: no text in field 'path'"):
        list(iterate_texts(NAME, "train"))
    seqio_source.seqio.TaskRegistry.remove(NAME)
    register_code(NAME, str(tmp_path / "code.jsonl"), policy=Policy(bad_line="skip"))
    assert list(iterate_texts(NAME, "train")) == ["a"]
    assert "1 lines without text in 'path'" in caplog.text
    assert "1 lines without text in 'content'" in caplog.text


def test_bad_options():
    with pytest.raises(ValueError, match="unlicensed must be 'skip' or 'keep', not 'maybe'"):
        register_code(NAME, "x", unlicensed="maybe")


def test_folders(tmp_path, caplog):
    files = {
        "train/b/z.py": b"z\n",
        "train/b/a.py": b"caf\xe9\n",
        "train/a.c": b"int x;\r\n",
        "train/.git/hook.py": b"hidden",
        "train/.hidden.py": b"hidden",
        "train/empty.py": b" \n",
        "train/read.txt": b"text",
        "validation/v.py": b"v",
    }
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "train/link.py").symlink_to(tmp_path / "validation/v.py")
    folders = {split: str(tmp_path / split) for split in ("train", "validation", "test")}
    register_code_files(NAME, folders)
    assert list(iterate_texts(NAME, "train")) == ["int x;\r\n", "caf\ufffd\n", "z\n"]
    for part in ("1 files with bytes replaced", "1 files without text", "1 files in other languages"):
        assert part in caplog.text
    assert list(iterate_texts(NAME, "validation")) == ["v"]
    with pytest.raises(UserError, match=r"there is no folder .*/test"):
        list(iterate_texts(NAME, "test"))


def test_links_to_folders_are_left_out(tmp_path):
    (tmp_path / "code" / "inner").mkdir(parents=True)
    (tmp_path / "code" / "inner" / "a.py").write_text("a")
    (tmp_path / "code" / "round").symlink_to(tmp_path / "code")
    register_code_files(NAME, str(tmp_path / "code"))
    assert list(iterate_texts(NAME, "train")) == ["a"]
