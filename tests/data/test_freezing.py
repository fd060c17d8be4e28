import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data import freezing
from t5x_scale.data.token_store import TokenStore

SETTINGS = {"source": {"task": "t"}, "vocabulary_fingerprint": "v", "vocabulary_size": 99, "separator_id": 1}
BUILDER = """
import pathlib, sys, time
import numpy as np
from t5x_scale.data.freezing import ensure, freeze

def build():
    pathlib.Path(sys.argv[2]).open("a").write("built\\n")
    for _ in range(int(sys.argv[3])):
        time.sleep(0.02)
        yield np.array([5, 6, 7])

def put():
    freeze(build(), sys.argv[1], source={"task": "t"}, vocabulary_fingerprint="v", vocabulary_size=99, separator_id=1)

store = ensure(sys.argv[1], put, process_index=int(sys.argv[4]), vocabulary_fingerprint="v")
print(store.fingerprint)
"""


def start(tmp_path, documents, process_index):
    arguments = [tmp_path / "stores" / "s", tmp_path / "log", documents, process_index]
    return subprocess.Popen([sys.executable, "-c", BUILDER, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def ensure(directory, build, vocabulary="v", **options):
    """The store of the documents `build()`, frozen if there is none."""

    def put():
        freezing.freeze(build(), directory, **{**SETTINGS, "vocabulary_fingerprint": vocabulary})

    return freezing.ensure(directory, put, vocabulary_fingerprint=vocabulary, **options)


def documents(count=3):
    return (np.array([5, 6, 7]) for _ in range(count))


def test_freeze_leaves_only_the_store(tmp_path):
    store = freezing.freeze(documents(), tmp_path / "a" / "s", **SETTINGS)
    assert store.num_tokens == 12
    assert os.listdir(tmp_path / "a") == ["s"]


def test_a_failing_source_leaves_nothing(tmp_path):
    def broken():
        yield np.array([5])
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        freezing.freeze(broken(), tmp_path / "s", **SETTINGS)
    assert os.listdir(tmp_path) == []


def test_nothing_is_overwritten(tmp_path):
    freezing.freeze(documents(), tmp_path / "s", **SETTINGS)
    with pytest.raises(UserError, match="already holds a token store"):
        freezing.freeze(documents(), tmp_path / "s", **SETTINGS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="must not exist or be empty"):
        freezing.freeze(documents(), tmp_path / "other", **SETTINGS)
    assert os.listdir(tmp_path / "other") == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    freezing.freeze(documents(), tmp_path / "empty", **SETTINGS)


def test_a_finished_store_is_not_built_again(tmp_path):
    first = ensure(tmp_path / "s", documents)

    def fail():
        raise AssertionError("built twice")

    assert ensure(tmp_path / "s", fail).fingerprint == first.fingerprint
    with pytest.raises(UserError, match="another vocabulary"):
        ensure(tmp_path / "s", fail, "w")


def test_of_processes_that_ask_at_once_one_builds(tmp_path):
    # Two runs of two processes each.
    processes = [start(tmp_path, 20, index) for index in (1, 0, 0, 1)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert len(set(outputs)) == 1
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_killed_build_is_begun_again(tmp_path):
    process = start(tmp_path, 10_000, 0)
    building = tmp_path / "stores" / ".s.building"
    while not building.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(UserError, match="does not exist"):
        TokenStore.open(tmp_path / "stores" / "s")
    store = ensure(tmp_path / "stores" / "s", documents)
    assert store.num_tokens == 12
    assert not building.exists()


def test_waiting_ends_when_the_builder_shows_no_life(tmp_path):
    with pytest.raises(UserError, match=r"waited 0\.3 s for process 0"):
        ensure(tmp_path / "s", documents, process_index=1, patience=0.3)


def test_waiting_goes_on_while_the_builder_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(freezing, "_HEARTBEAT", 0.05)

    def slow():
        for _ in range(20):
            time.sleep(0.1)
            yield np.array([5])

    builder = threading.Thread(target=freezing.freeze, args=(slow(), tmp_path / "s"), kwargs=SETTINGS)
    builder.start()
    store = ensure(tmp_path / "s", documents, process_index=1, patience=1.0)
    builder.join()
    assert store.num_tokens == 40


def test_the_one_who_waits_for_the_lock_is_told(tmp_path, caplog):
    inside, leave = threading.Event(), threading.Event()

    def slow():
        inside.set()
        leave.wait(10)
        yield np.array([5])

    builder = threading.Thread(target=ensure, args=(tmp_path / "s", slow))
    builder.start()
    inside.wait(10)
    other = threading.Thread(target=ensure, args=(tmp_path / "s", documents))
    other.start()
    deadline = time.monotonic() + 10
    while not caplog.messages and time.monotonic() < deadline:
        time.sleep(0.01)
    leave.set()
    builder.join()
    other.join()
    [line] = caplog.messages
    assert line.startswith(f"another process builds the token store {tmp_path}/s: waiting until it has, or ends and")
    assert TokenStore.open(tmp_path / "s").num_tokens == 2


def test_a_sign_of_life_that_fails_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(freezing, "_HEARTBEAT", 0.0)
    beaten = []
    monkeypatch.setattr(freezing.os, "utime", lambda path: (beaten.append(path), os.stat(path)))
    freezing.heartbeat(tmp_path / "gone")()
    assert beaten == [tmp_path / "gone"]
    assert not (tmp_path / "gone").exists()


def test_an_object_store_is_asked_rarely(monkeypatch):
    looks, pauses = iter([False, False, True]), []
    monkeypatch.setattr(freezing, "is_finished", lambda target: next(looks))
    monkeypatch.setattr(freezing, "_sign_of_life", lambda target: None)
    monkeypatch.setattr(freezing.time, "sleep", pauses.append)
    freezing._wait(files.to_path("gs://bucket/s"), 60.0)
    assert pauses == [5.0, 5.0]
