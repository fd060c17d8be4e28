"""Builds by several processes: the same bytes whatever the number of workers and however often they are killed."""

import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.building import pool
from t5x_scale.data.building.build import build_store, parts_directory
from t5x_scale.data.building.interface import Curation, Record
from t5x_scale.data.building.parts import list_parts
from t5x_scale.data.building.progress import Progress
from t5x_scale.data.building.work import Options
from t5x_scale.data.curation.exact_duplicates import ExactSigner
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import load_vocabulary

OPTIONS = Options(load_vocabulary("bytes"))


def make_records(count=40):
    return [Record((f"document {index} " * (index % 7),)) for index in range(count)]


def build(target, records, workers=0, options=OPTIONS, **settings):
    return build_store(
        records, target, options, source={"task": "t"}, workers=workers, unit_characters=300, chunk=200, **settings
    )


def contents(store):
    root = os.fspath(store.directory)
    found = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]
    return {os.path.relpath(path, root): open(path, "rb").read() for path in found}


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """A filter that does something to its worker when it meets a word. Importable: it goes to other processes."""

    word: str
    what: str

    def __call__(self, text):
        if self.word in text:
            if self.what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"fail": KeyError, "refuse": UserError}[self.what]("because")
        return None

    def describe(self):
        return {"filter": "Behaviour", "word": self.word}


class KeepAll:
    """Finds no duplicates."""

    reason = "duplicate"

    def __call__(self, parts):
        return [np.ones(len(part["text_hash"]), bool) for part in parts()]

    def describe(self):
        return {}


def test_the_number_of_workers_changes_nothing(tmp_path):
    stores = [build(tmp_path / str(workers), make_records(), workers) for workers in (0, 1, 3)]
    assert contents(stores[0]) == contents(stores[1]) == contents(stores[2])
    assert stores[0].manifest.report["empty"] == 6
    # Nothing but the stores is left.
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "3"]


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("die", UserError, r"a worker of the build died at unit \d+ \(signal SIGKILL\).*the same command goes on"),
        ("refuse", UserError, "because"),
        ("fail", RuntimeError, r"a worker failed at unit \d+:\n.*KeyError"),
    ],
)
def test_a_worker_that_ends_early(tmp_path, monkeypatch, what, error, message):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    options = dataclasses.replace(OPTIONS, curation=Curation((Behaviour("document 33", what),)))
    with pytest.raises(error, match=f"(?s){message}"):
        build(tmp_path / "s", make_records(), 2, options)
    with pytest.raises(UserError, match="does not exist"):
        TokenStore.open(tmp_path / "s")
    assert list_parts(parts_directory(tmp_path / "s"))


def test_workers_import_no_tensorflow_and_no_jax():
    code = (
        "import sys, t5x_scale.data.building.worker\n"
        "assert not {'tensorflow', 'seqio', 'jax', 'tensorstore', 'rich'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


KILLED = """
    import itertools, sys, time
    from t5x_scale.data.building.build import build_store
    from t5x_scale.data.building.interface import Record
    from t5x_scale.data.building.work import Options
    from t5x_scale.data.vocabulary import load_vocabulary

    def records():
        # Ends when it is killed.
        for index in itertools.count():
            yield Record((f"document {index} " * (index % 7),))
            time.sleep(0.002 if index < 40 else 0.5)

    build_store(records(), sys.argv[1], Options(load_vocabulary("bytes")), source={"task": "t"}, workers=2,
                unit_characters=300, chunk=200)
"""


def start_and_stop(target, number):
    """Starts a build that would never end; stops it when there are parts."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), os.fspath(target)],
        stderr=subprocess.PIPE,
        # A shell that runs the tests in the background has its children ignore what Ctrl-C sends.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(list_parts(parts_directory(target))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    stderr = process.communicate(timeout=30)[1].decode()
    return process.returncode, stderr


def test_a_killed_build_goes_on_where_it_was(tmp_path, caplog):
    target = tmp_path / "s"
    assert start_and_stop(target, signal.SIGKILL)[0] == -signal.SIGKILL
    finished = list_parts(parts_directory(target))
    with pytest.raises(UserError, match="does not exist"):
        TokenStore.open(target)
    times = {index: (parts_directory(target) / f"part-{index:08d}.npz").stat().mtime for index in finished}
    progress = Progress("s")
    store = build(target, make_records(), progress=progress)
    assert len(times) >= 3
    # What was finished is counted, not made again.
    assert progress.new_documents < progress.documents == 40
    assert contents(store) == contents(build(tmp_path / "other", make_records()))
    assert not any("changed" in message for message in caplog.messages)


def test_an_interrupted_build_ends_quickly_and_can_go_on(tmp_path):
    code, stderr = start_and_stop(tmp_path / "s", signal.SIGINT)
    assert code != 0
    assert "KeyboardInterrupt" in stderr.splitlines()[-1]
    # No worker has a traceback to add.
    assert stderr.count("Traceback") == 1
    assert len(list_parts(parts_directory(tmp_path / "s"))) >= 3
    build(tmp_path / "s", make_records()).verify()


def fail_after(records, count):
    yield from records[:count]
    raise UserError("the source broke")


def test_a_source_that_breaks_and_is_mended(tmp_path):
    with pytest.raises(UserError, match="the source broke"):
        build(tmp_path / "s", fail_after(make_records(), 38))
    progress = Progress("s")
    store = build(tmp_path / "s", make_records(), progress=progress)
    assert 0 < progress.new_documents < 40
    assert contents(store) == contents(build(tmp_path / "other", make_records()))


@settings(max_examples=10, deadline=None)
@given(points=st.lists(st.integers(0, 39), max_size=4))
def test_however_often_it_is_interrupted(tmp_path_factory, points):
    directory = tmp_path_factory.mktemp("interrupted")
    for point in points:
        with pytest.raises(UserError, match="the source broke"):
            build(directory / "s", fail_after(make_records(), point))
        assert not (directory / "s").exists()
    store = build(directory / "s", make_records())
    store.verify()
    assert store.fingerprint == build(directory / "other", make_records()).fingerprint
    assert sorted(os.listdir(directory)) == ["other", "s"]


@pytest.mark.parametrize("count", [0, 1, 8, 12])
def test_a_build_that_goes_on_and_breaks_at_once_keeps_what_was_finished(tmp_path, count):
    with pytest.raises(UserError, match="the source broke"):
        build(tmp_path / "s", fail_after(make_records(), 38))
    finished = list_parts(parts_directory(tmp_path / "s"))
    with pytest.raises(UserError, match="the source broke"):
        build(tmp_path / "s", fail_after(make_records(), count))
    assert list_parts(parts_directory(tmp_path / "s")) == finished != {}


def test_a_source_that_breaks_at_once_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="the source broke"):
        build(tmp_path / "s", fail_after(make_records(), 5))
    assert os.listdir(tmp_path) == []


def test_a_source_that_changed_in_between(tmp_path, caplog):
    with pytest.raises(UserError):
        build(tmp_path / "s", fail_after(make_records(), 35))
    changed = make_records()
    changed[20] = Record(("something else",))
    store = build(tmp_path / "s", changed[:30])
    assert "the source changed since the build" in caplog.text
    assert contents(store) == contents(build(tmp_path / "other", changed[:30]))


def test_options_that_changed_in_between(tmp_path, caplog):
    with pytest.raises(UserError):
        build(tmp_path / "s", fail_after(make_records(), 35))
    options = dataclasses.replace(OPTIONS, curation=Curation((Behaviour("nothing", "refuse"),)))
    progress = Progress("s")
    build(tmp_path / "s", make_records(), options=options, progress=progress)
    assert "made with other options; starting over" in caplog.text
    assert progress.new_documents == 40


def test_a_place_that_is_taken_is_said_before_the_work(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="must not exist or be empty"):
        build(tmp_path / "s", fail_after([], 0))
    assert os.listdir(tmp_path) == ["s"]


def test_fewer_workers_than_none(tmp_path):
    with pytest.raises(UserError, match="workers is -1"):
        build(tmp_path / "s", make_records(), -1)
    assert os.listdir(tmp_path) == []


def test_workers_start_at_once(tmp_path, monkeypatch):
    """What they are sent may be large, and each takes it only when it is up."""
    started, sent_at = [], []
    popen, send = subprocess.Popen, pool._Worker._send

    def start(*args, **settings):
        started.append(args)
        return popen(*args, **settings)

    def note(worker, value):
        sent_at.append(len(started))
        send(worker, value)

    monkeypatch.setattr(pool.subprocess, "Popen", start)
    monkeypatch.setattr(pool._Worker, "_send", note)
    build(tmp_path / "s", make_records(), 3)
    assert set(sent_at) == {3}


def test_a_full_disk(tmp_path):
    # A limit on the size of a file is what a full disk looks like to one process: the parts fit, the store does not.
    code = """
        import resource, signal, sys
        from t5x_scale.core.errors import UserError
        from t5x_scale.data.building.build import build_store
        from t5x_scale.data.building.interface import Record
        from t5x_scale.data.building.work import Options
        from t5x_scale.data.vocabulary import load_vocabulary

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        try:
            records = [Record((f"document {i} " * (i % 7),)) for i in range(40)]
            build_store(records, sys.argv[1], Options(load_vocabulary("bytes")), source={"task": "t"},
                        workers=int(sys.argv[3]), unit_characters=300, chunk=2000)
        except UserError as error:
            sys.exit(str(error))
    """

    def run(limit, workers=0):
        arguments = [sys.executable, "-c", textwrap.dedent(code), os.fspath(tmp_path / "s"), str(limit), str(workers)]
        done = subprocess.run(arguments, capture_output=True, text=True)
        return done.returncode, done.stderr.strip()

    for limit, workers, message in ((500, 0, "/parts/part-"), (500, 1, "/parts/part-"), (2500, 0, "/store/tokens")):
        status, stderr = run(limit, workers)
        assert status == 1
        assert len(stderr.splitlines()) == 1
        assert stderr.startswith("cannot write ")
        assert message in stderr
        with pytest.raises(UserError, match="does not exist"):
            TokenStore.open(tmp_path / "s")
    assert list_parts(parts_directory(tmp_path / "s"))
    assert run(10**9) == (0, "")
    TokenStore.open(tmp_path / "s").verify()


def test_progress_in_lines(tmp_path, monkeypatch):
    from t5x_scale.data.building import progress as progress_lib

    monkeypatch.setattr(progress_lib, "_INTERVAL", 0.0)
    stream = io.StringIO()
    total = sum(len(record.targets[0]) for record in make_records())
    build(tmp_path / "s", make_records(), progress=Progress("corpus", total, show=True, stream=stream))
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(r"corpus: [\d.]+%, \d+ documents, \d+ tokens \([\d,]+ documents/s, [\d,]+ tokens/s\)", lines[0])
    assert any(line.startswith("corpus: 100.0%, 40 documents, ") for line in lines)
    # Where duplicates are looked for, the store is assembled when all parts are there.
    options = dataclasses.replace(OPTIONS, curation=Curation(signers=(ExactSigner(),), deduplicators=(KeepAll(),)))
    build(tmp_path / "t", make_records(), options=options, progress=Progress("corpus", show=True, stream=stream))
    assert re.fullmatch(r"corpus: (\d+) of \1 parts assembled", stream.getvalue().splitlines()[-1])


def test_a_small_source_starts_no_processes(tmp_path, monkeypatch):
    def refuse(*unused, **also):
        raise AssertionError("a pool for a few lines")

    monkeypatch.setattr(pool, "_start", refuse)
    build(tmp_path / "s", make_records(6), workers=None)
    monkeypatch.setattr("t5x_scale.data.building.build.count_cores", lambda: 1)
    with pytest.raises(AssertionError, match="a pool"):
        build(tmp_path / "t", make_records(), workers=None)
