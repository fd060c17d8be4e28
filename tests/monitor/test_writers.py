import errno
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.monitor.metric_log import log_path, read_metrics
from t5x_scale.monitor.writers import MetricWriters


def losses(directory):
    series = read_metrics(directory).series["train/loss"]
    return dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))


@pytest.mark.parametrize("remote", [False, True])
def test_write_resume_and_redo(tmp_path, bucket, remote):
    directory = f"{bucket}/run" if remote else tmp_path
    with MetricWriters(directory) as writers:
        writers.event("start", 0)
        for step in range(1, 6):
            writers.write(step, {"train/loss": np.float32(step)})
    with MetricWriters(directory) as writers:
        writers.event("start", 3, devices=8)
        writers.write(4, {"train/loss": 40.0, "optim/grad_norm": 1})
        assert writers.flush()
        assert losses(directory) == {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0}
        writers.write(5, {"train/loss": 50.0})
    assert losses(directory) == {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0, 5: 50.0}
    assert [event["step"] for event in read_metrics(directory).events] == [0, 3]


def test_lines_survive_a_kill(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from t5x_scale.monitor.writers import MetricWriters\n"
        "writers = MetricWriters(sys.argv[1])\n"
        "writers.write(1, {'train/loss': 1.0})\n"
        "writers.flush()\n"
        "writers.write(2, {'train/loss': 2.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert killed.returncode == -9
    path = log_path(tmp_path)
    path.write_bytes(path.read_bytes() + b'{"step": 3, "ti')  # Torn in the middle of a line.
    with MetricWriters(tmp_path) as writers:
        writers.write(4, {"train/loss": 4.0})
    log = read_metrics(tmp_path)
    assert log.damaged_lines == 0
    assert {1: 1.0, 4: 4.0}.items() <= losses(tmp_path).items()
    assert 3 not in losses(tmp_path)


def test_an_unexpected_exit_leaves_the_last_lines(tmp_path):
    program = (
        "import sys\n"
        "from t5x_scale.monitor.writers import MetricWriters\n"
        "writers = MetricWriters(sys.argv[1])\n"
        "for step in range(1, 2001): writers.write(step, {'train/loss': 1.0})\n"
        "raise RuntimeError\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.DEVNULL).returncode == 1
    assert len(losses(tmp_path)) == 2000


def test_names_and_values_are_checked_where_they_are_written(tmp_path):
    with MetricWriters(tmp_path) as writers:
        with pytest.raises(ValueError, match="'loss' is not of the form"):
            writers.write(1, {"loss": 1.0})
        with pytest.raises(TypeError, match="plain numbers"):
            writers.write(1, {"train/loss": jnp.zeros(())})
    assert read_metrics(tmp_path).series == {}


def test_the_caller_never_waits(tmp_path, monkeypatch):
    with MetricWriters(tmp_path) as writers:
        monkeypatch.setattr(writers._log, "flush", lambda: time.sleep(0.3))
        start = time.perf_counter()
        for step in range(100):
            writers.write(step, {"train/loss": 1.0})
        assert time.perf_counter() - start < 0.2


def test_a_passing_failure_loses_nothing(tmp_path, monkeypatch, caplog):
    with MetricWriters(tmp_path) as writers:
        flush, failures = writers._log.flush, []

        def full():
            if len(failures) < 2:
                failures.append(1)
                raise OSError(errno.ENOSPC, "No space left on device")
            flush()

        monkeypatch.setattr(writers._log, "flush", full)
        writers.write(1, {"train/loss": 1.0})
        writers.flush()
        writers.write(2, {"train/loss": 2.0})
        while not writers.flush():
            pass
    assert losses(tmp_path) == {1: 1.0, 2: 2.0}
    assert len([record for record in caplog.records if "No space left" in record.message]) == 1


def test_a_lasting_failure_is_an_error_at_the_end(tmp_path, monkeypatch):
    writers = MetricWriters(tmp_path)

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writers._events, "flush", full)
    writers.write(1, {"train/loss": 1.0})
    assert not writers.flush()
    with pytest.raises(UserError, match="No space left"):
        writers.close()
    assert losses(tmp_path) == {1: 1.0}


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        MetricWriters(tmp_path / "file")


def test_disabled_does_nothing(tmp_path):
    with MetricWriters(tmp_path / "run", enabled=False) as writers:
        writers.event("start", 0)
        writers.write(1, {"train/loss": 1.0})
        assert writers.flush()
    assert not (tmp_path / "run").exists()
