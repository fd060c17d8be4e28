"""Paths, whole writes and logs that grow."""

import errno
import logging
import os
import pathlib
import resource
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core import files
from t5x_scale.core.errors import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from gcs import FakeStorage

LINES = st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])), max_size=20)


@pytest.mark.parametrize("name", ["gcsfs", "fsspec.prefetcher"])
def test_clients_of_object_stores_write_no_pages_about_what_they_raise(name):
    assert not logging.getLogger(name).isEnabledFor(logging.ERROR)


def test_write_text_replaces_whole_and_leaves_no_temporary(tmp_path):
    target = tmp_path / "config.gin"
    files.write_text(target, "old")
    files.write_text(target, "new")
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["config.gin"]


def test_read_json_names_the_file_that_is_missing_or_broken(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*absent\.json"):
        files.read_json(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"broken\.json is not valid JSON"):
        files.read_json(tmp_path / "broken.json")


def test_make_directory_names_what_stands_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to the directory .*file/run"):
        files.make_directory(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"cannot write to the directory .*file: it is no directory"):
        files.make_directory(tmp_path / "file")


@given(sessions=st.lists(LINES, max_size=4))
def test_append_log_returns_every_line_of_every_session(tmp_path_factory, sessions):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    for lines in sessions:
        with files.AppendLog(path) as log:
            for line in lines:
                log.write(line)
    assert files.read_appended(path) == [line for lines in sessions for line in lines]


@pytest.mark.parametrize("torn", ['{"step": 3', "x" * 200_000])
def test_append_log_drops_a_line_torn_by_a_kill(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"one\ntwo\n{torn}")
    assert files.read_appended(path) == ["one", "two"]
    with files.AppendLog(path) as log:
        log.write("three")
    assert path.read_text() == "one\ntwo\nthree\n"


def test_append_log_shows_lines_after_flush(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = files.AppendLog(path)
    log.write("one")
    log.flush()
    assert files.read_appended(path) == ["one"]
    log.close()
    log.close()
    with pytest.raises(ValueError, match="is closed"):
        log.write("two")


def test_read_appended_of_nothing_is_empty(tmp_path):
    assert files.read_appended(tmp_path / "absent" / "metrics.jsonl") == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.jsonl.part-00000"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_read_appended_of_what_is_no_file(tmp_path, make, name):
    make(tmp_path / name)
    with pytest.raises(UserError, match=r"cannot read .*metrics\.jsonl: (it is no plain file|Is a directory)"):
        files.read_appended(tmp_path / "metrics.jsonl")


def test_read_appended_joins_parts_in_numeric_order(tmp_path):
    for number in (10, 2, 0):
        (tmp_path / f"metrics.jsonl.part-{number:05d}").write_text(f"{number}\n")
    (tmp_path / "other.jsonl.part-00001").write_text("other\n")
    assert files.read_appended(tmp_path / "metrics.jsonl") == ["0", "2", "10"]


REMOTE_PROGRAM = """
from t5x_scale.core import files
path = "gs://bucket/run/metrics/metrics.jsonl"
files.make_directory("gs://bucket/run/metrics")
files.write_json("gs://bucket/run/info.json", {"a": 1})
assert files.read_json("gs://bucket/run/info.json") == {"a": 1}
assert files.read_appended(path) == []
with files.AppendLog(path, part_bytes=12) as log:
    for number in range(5):
        log.write(f"line {number}")
        log.flush()
        assert files.read_appended(path)[-1] == f"line {number}"
with files.AppendLog(path) as log:
    log.write("again")
assert files.read_appended(path) == [f"line {number}" for number in range(5)] + ["again"]
"""


OTHERS_PROGRAM = """
import os, urllib.request
from t5x_scale.core import files
directory = files.to_path("gs://bucket/run")
(directory / "first").write_text("")
assert [path.name for path in directory.iterdir()] == ["first"]
assert not (directory / "second").exists()
# Another process writes: not through the client of this one.
address = os.environ["STORAGE_EMULATOR_HOST"] + "/upload/storage/v1/b/bucket/o?uploadType=media&name=run/second"
urllib.request.urlopen(urllib.request.Request(address, data=b"x", method="POST"))
assert (directory / "second").exists()
assert sorted(path.name for path in directory.iterdir()) == ["first", "second"]
"""


def test_what_other_processes_write_to_a_bucket_is_seen():
    pytest.importorskip("gcsfs")
    with FakeStorage(["bucket"]) as storage:
        environment = {**os.environ, **storage.environment()}
        # Inherited from this process, which has imported the module already.
        environment = {name: value for name, value in environment.items() if not name.startswith("FSSPEC_")}
        command = [sys.executable, "-c", OTHERS_PROGRAM]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr[-3000:]


def test_gs_paths_and_logs_in_parts():
    pytest.importorskip("gcsfs")
    with FakeStorage(["bucket"]) as storage:
        environment = {**os.environ, **storage.environment()}
        command = [sys.executable, "-c", REMOTE_PROGRAM]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr[-3000:]
        parts = {name: stored.data for name, stored in storage.buckets["bucket"].items() if ".part-" in name}
    assert parts == {
        "run/metrics/metrics.jsonl.part-00000": b"line 0\nline 1\n",
        "run/metrics/metrics.jsonl.part-00001": b"line 2\nline 3\n",
        "run/metrics/metrics.jsonl.part-00002": b"line 4\n",
        "run/metrics/metrics.jsonl.part-00003": b"again\n",
    }


def test_an_appended_log_goes_on_where_a_full_disk_cut_it(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [f"{number:0100d}" for number in range(200)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with files.AppendLog(path) as log:
        log.write(lines[0])
        log.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            for line in lines[1:100]:
                log.write(line)
            with pytest.raises(OSError, match="File too large"):
                log.flush()
            assert path.stat().st_size == 1000
            log.write(lines[100])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        for line in lines[101:]:
            log.write(line)
    assert files.read_appended(path) == lines


def hide(monkeypatch, module, name, number):
    """Has a function of the system raise whatever it is asked."""

    def act(path, *unused, **named):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(module, name, act)


def test_what_exists(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    assert files.exists(tmp_path)
    assert files.exists(tmp_path / "file")
    for name in ("nothing", "file/below", "circle", "circle/below", "a" * 300, "zero\0"):
        assert not files.exists(tmp_path / name)
        assert not files.is_directory(tmp_path / name)
        assert not files.is_file(tmp_path / name)
    assert (files.is_directory(tmp_path), files.is_file(tmp_path)) == (True, False)
    assert (files.is_directory(tmp_path / "file"), files.is_file(tmp_path / "file")) == (False, True)


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EACCES, errno.EIO])
def test_what_nobody_can_see_is_not_missing(tmp_path, monkeypatch, number):
    log = tmp_path / "log.jsonl"
    with files.AppendLog(log) as lines:
        lines.write("one")
    usual = os.stat
    hide(monkeypatch, os, "stat", number)
    for ask in (files.exists, files.is_directory, files.is_file):
        with pytest.raises(OSError, match=os.strerror(number)):
            ask(log)
    monkeypatch.setattr(os, "stat", usual)
    hide(monkeypatch, os, "open", number)
    with pytest.raises(UserError, match=f"cannot read .*: {os.strerror(number)}"):
        files.read_appended(log)


def test_a_log_is_not_asked_for_before_it_is_read(tmp_path, monkeypatch):
    """The answer would be no while the storage is away, and the log read as empty."""
    log = tmp_path / "log.jsonl"
    with files.AppendLog(log) as lines:
        lines.write("one")
    (tmp_path / "log.jsonl.part-00000").write_text("two\n")
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert files.read_appended(log) == ["one", "two"]
    with open(log, "a") as file:
        file.write("torn")
    files.AppendLog(log).close()
    assert log.read_text() == "one\n"
