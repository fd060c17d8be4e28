"""Runs in processes: finished ones are left alone, failures are told, and what is stopped goes on."""

import io
import json
import os
import pathlib
import signal
import sys
import threading
import time

import pytest
from fake_runs import write_run

from t5x_scale.sweeps.jobs import Job, is_finished
from t5x_scale.sweeps.pool import Pool
from t5x_scale.sweeps.progress import Progress, last_step


def serve(connection, lock_path):
    """In place of the worker: a run does what its name says, and leaves a line in `ran`."""

    def stop(*_):
        connection.send(75)
        sys.exit()

    signal.signal(signal.SIGTERM, stop)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        with open(pathlib.Path(job.model_dir).parent / "ran", "a") as file:
            file.write(f"{job.name}\n")
        if job.name == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.name == "wait":
            time.sleep(60)
        else:
            connection.send({"fail": 1, "resume": 75}.get(job.name, 0))


def jobs(tmp_path, *names):
    return [Job(name, str(tmp_path / name), (), {"A": "1"}, {"model.gin": "x = 1"}) for name in names]


def ran(tmp_path):
    return (tmp_path / "ran").read_text().split() if (tmp_path / "ran").exists() else []


def test_every_run_once_and_finished_ones_never_again(tmp_path, capsys):
    first = jobs(tmp_path, "a", "b", "c")
    assert Pool(2, serve).train(first).code == 0
    assert sorted(ran(tmp_path)) == ["a", "b", "c"]
    assert all(map(is_finished, first))
    assert (tmp_path / "a" / "model.gin").read_text() == "x = 1"
    assert "3 of 3" in capsys.readouterr().out
    outcome = Pool(2, serve).train(jobs(tmp_path, "a", "d"))
    assert (outcome.code, ran(tmp_path)[3:]) == (0, ["d"])


def test_failures_do_not_keep_others_from_running(tmp_path, capsys):
    outcome = Pool(1, serve).train(jobs(tmp_path, "fail", "die", "a"))
    assert outcome.code == 1
    assert [pathlib.Path(path).name for path in outcome.failed] == ["fail", "die"]
    assert outcome.finished == [str(tmp_path / "a")]
    said = capsys.readouterr().err
    assert "fail ended with code 1" in said
    assert "die was killed by signal 9" in said


def test_a_run_that_was_told_to_stop_ends_the_sweep(tmp_path):
    outcome = Pool(1, serve).train(jobs(tmp_path, "a", "resume", "b"))
    assert outcome.code == 75
    assert [pathlib.Path(path).name for path in outcome.resumable] == ["resume", "b"]
    assert ran(tmp_path) == ["a", "resume"]


def test_a_signal_stops_all_and_the_same_call_goes_on(tmp_path):
    def stop():
        while "wait" not in ran(tmp_path):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    outcome = Pool(1, serve).train(jobs(tmp_path, "wait", "b"))
    assert outcome.code == 75
    assert len(outcome.resumable) == 2
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("cores", ["4", None])
def test_runs_share_the_cores(tmp_path, monkeypatch, cores):
    monkeypatch.delenv("NPROC", raising=False)
    if cores:
        monkeypatch.setenv("NPROC", cores)
    Pool(2, note_cores).train(jobs(tmp_path, "a", "b"))
    found = json.loads((tmp_path / "a" / "cores").read_text())
    assert found == 2 if cores else found >= 1
    assert os.environ.get("NPROC") == cores


def note_cores(connection, lock_path):
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        (pathlib.Path(job.model_dir) / "cores").write_text(os.environ["NPROC"])
        connection.send(0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    """Half of the second of two runs is done."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    write_run(tmp_path / "b", trained=5)
    first, second = jobs(tmp_path, "a", "b")
    # Its last line is that of the evaluation at the end, and may be half written.
    assert last_step(second) == (5, 10)
    assert last_step(first) == (0, 0)
    with Progress([first, second], []) as progress:
        progress.show([second], [first.model_dir], [])
        assert progress.bar.tasks[0].completed == 1.5
        assert progress.bar.tasks[0].description == "1 of 2; b 5"
