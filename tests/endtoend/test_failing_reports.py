"""A run that is finished stays finished, whatever becomes of its report."""

import shutil

import pytest

from t5x_scale.monitor.metric_log import log_path, read_metrics


@pytest.fixture
def run(finished, tmp_path):
    """The finished run with one byte of its record damaged, of the name of a metric."""
    shutil.copytree(finished.path, tmp_path / "run")
    path = log_path(tmp_path / "run")
    data = path.read_bytes()
    place = data.index(b"train/loss", len(data) // 2)
    path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
    return tmp_path / "run"


def test_a_report_that_cannot_be_made_is_one_warning(runner, source, run):
    shutil.rmtree(run / "report")
    (run / "report").write_text("a file where its directory belongs")
    process = runner.run("train", MODEL_DIR=str(run), MIXTURE_OR_TASK_NAME=source)
    assert process.out.splitlines()[-1] == "done: 12 steps"
    assert process.err.count("the run is finished, but its report cannot be made: cannot write to the directory") == 1
    assert "Traceback" not in process.err


def test_a_damaged_byte_of_the_record_is_a_line_left_out(runner, source, run):
    process = runner.run("train", MODEL_DIR=str(run), MIXTURE_OR_TASK_NAME=source)
    assert process.out.splitlines()[-1].startswith("done: 12 steps; see ")
    assert runner.run("report", str(run)).out
    assert read_metrics(run).damaged_lines == 1
