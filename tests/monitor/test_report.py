import errno
import html.parser
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from t5x_scale.commands.report import report
from t5x_scale.core import files, patience
from t5x_scale.core.errors import UnavailableError, UserError
from t5x_scale.monitor import figures
from t5x_scale.monitor.report import make_report
from t5x_scale.monitor.writers import MetricWriters

PNG = b"\x89PNG\r\n\x1a\n"


def write_run(directory, steps=300, loss=lambda step: 2 + 8 / step):
    with MetricWriters(directory) as writers:
        writers.event("start", 0, at=1000.0)
        for step in range(1, steps + 1):
            metrics = {"train/loss": loss(step), "train/tokens": step * 1024, "throughput/tokens_per_second": 900.0}
            writers.write(step, {**metrics, "optim/learning_rate": 0.01, "throughput/mfu": 0.4}, at=1000.0 + step)
            if step % 100 == 0:
                writers.write(step, {"eval/books/loss": loss(step) + 0.1, "eval/code/loss": 3.0}, at=1000.0 + step)


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.texts, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        if tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("remote", [False, True])
def test_the_whole_report(tmp_path, bucket, remote):
    directory = files.to_path(f"{bucket}/run" if remote else tmp_path)
    write_run(directory)
    with MetricWriters(directory) as writers:  # Killed at 300, taken up at 250, now at 280.
        writers.event("start", 250, at=5000.0)
        for step in range(251, 281):
            writers.write(step, {"train/loss": 2.5}, at=4750.0 + step)
    (directory / "config.gin").write_text("train.steps = 3  # <script>alert(1)</script>\n")
    (directory / "run.json").write_text('{"seed": 7}')
    path = make_report(directory)
    assert path == directory / "report" / "report.html"
    assert (directory / "report" / "loss.png").read_bytes().startswith(PNG)
    page = Page(path.read_text())
    # Loss and three panels, all inside the page; nothing is loaded from anywhere.
    assert len(page.images) == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.images)
    assert not any(link.startswith("http") for link in page.links)
    assert "script" not in page.tags
    assert any("<script>alert(1)</script>" in text for text in page.texts)
    assert any('"seed": 7' in text for text in page.texts)
    summary = json.loads((directory / "report" / "summary.json").read_text())
    assert summary["step"] == 280
    assert summary["tokens"] == 250 * 1024
    assert summary["seconds"] == 300 + 30
    assert [(entry["step"], entry["redone_steps"]) for entry in summary["restarts"]] == [(250, 50)]
    assert summary["train_loss"] == {"mean": 2.5, "steps": 280 // 40 + 1}
    assert summary["validation_loss"]["books"]["last"] == pytest.approx(2 + 8 / 200 + 0.1)
    assert summary["mfu"] == 0.4


def test_a_single_point(tmp_path):
    write_run(tmp_path, steps=1)
    make_report(tmp_path)
    assert files.read_json(tmp_path / "report" / "summary.json")["train_loss"] == {"mean": 10.0, "steps": 1}


def test_nothing_finite(tmp_path):
    write_run(tmp_path, steps=200, loss=lambda step: float("nan") if step % 2 else float("inf"))
    text = make_report(tmp_path).read_text()
    assert "train/loss is not finite at 200 of 200 steps." in text
    summary = json.loads((tmp_path / "report" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["metrics"]["train/loss"]["last"] == "Infinity"
    assert summary["train_loss"]["mean"] is None


def test_only_a_metric_nobody_draws(tmp_path):
    with MetricWriters(tmp_path) as writers:
        writers.write(0, {"custom/value": 1.0})
    assert "custom/value" in make_report(tmp_path).read_text()


def test_the_same_record_gives_the_same_report(tmp_path):
    write_run(tmp_path)
    first = make_report(tmp_path).read_bytes()
    assert make_report(tmp_path).read_bytes() == first


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no such directory: .*nowhere"):
        make_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"metrics\.jsonl holds no metrics"):
        make_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_what_cannot_be_read_is_not_missing(tmp_path, monkeypatch):
    write_run(tmp_path)
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    usual = os.open

    def refuse(number):
        def act(path, *given, **named):
            if str(path).startswith(str(tmp_path)):
                raise OSError(number, os.strerror(number), str(path))
            return usual(path, *given, **named)

        monkeypatch.setattr(os, "open", act)

    refuse(errno.EACCES)
    with pytest.raises(UserError, match=r"cannot read .*metrics\.jsonl: Permission denied"):
        make_report(tmp_path)
    refuse(errno.ENOTCONN)
    with pytest.raises(UnavailableError, match=r"the record of .* not connected; nothing was changed"):
        make_report(tmp_path)


def test_the_command(tmp_path, capsys):
    write_run(tmp_path)
    assert report(str(tmp_path)) == 0
    output = capsys.readouterr().out
    assert f"report: {tmp_path}/report/report.html" in output
    assert "307k" in output  # Tokens.


@pytest.mark.parametrize("log", [False, True])
def test_a_long_curve_keeps_its_spikes_in_2000_points(log):
    steps = np.arange(1, 300_001)
    values = np.random.default_rng(0).standard_normal(300_000)
    values[123_456], values[200_000], values[7] = 1e3, -1e3, np.nan
    few_steps, few_values = figures.downsample(steps, values, log=log)
    assert len(few_steps) <= figures.MAX_POINTS
    assert np.all(np.diff(few_steps) > 0)
    assert {1e3, -1e3} <= set(few_values.tolist())
    assert np.all(values[few_steps - 1][~np.isnan(few_values)] == few_values[~np.isnan(few_values)])


def test_the_smoothed_curve():
    values = np.array([10.0, 8.0, 6.0, *np.full(200, 4.0), np.nan, 1.0, 3.0])
    line = figures.smooth(values, 2)
    assert line[0] == 10.0  # The first fall is not flattened ...
    assert line[100] == 4.0
    assert line[-1] == 2.0  # ... and the last value is the mean of the last half window, without the NaN.
    assert np.isnan(figures.smooth(np.full(5, np.nan), 2)).all()


def test_no_window_system_and_no_matplotlib_before_a_report():
    program = "import sys, t5x_scale.monitor.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_rewind_counts_once(tmp_path):
    write_run(tmp_path, steps=30)
    with MetricWriters(tmp_path) as writers:
        writers.event("rewind", 10, number=1)
        writers.write(11, {"train/loss": 2.0})
        # Killed before the next save: the next process carries the same intervention out again.
        writers.event("start", 10)
        writers.event("rewind", 10, number=1)
        writers.write(11, {"train/loss": 2.0})
        writers.event("rewind", 5, number=2)
        writers.write(6, {"train/loss": 2.0})
    make_report(tmp_path)
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert [(entry["step"], entry["redone_steps"]) for entry in summary["rewinds"]] == [(10, 20), (5, 6)]
