"""What the noise of a run's gradients says of its batch, on records whose noise is known."""

import numpy as np
import pytest

from t5x_scale.commands.report import report
from t5x_scale.monitor.metric_log import read_metrics
from t5x_scale.monitor.writers import MetricWriters
from t5x_scale.optim import noise_scale
from t5x_scale.planner.hindsight import NOISE, SIGNAL, Moment, make_batch_table, noise_along


def write_run(directory, batch, steps=200, signal=2.0, recorded=True):
    """A run with a noise scale of 500 tokens."""
    random = np.random.default_rng(0)
    with MetricWriters(directory) as writers:
        writers.event("start", 0, at=1000.0)
        for step in range(1, steps + 1):
            metrics = {"train/loss": 3.0, "train/tokens": step * batch, "train/weight": batch}
            if recorded:
                metrics[NOISE] = 1000.0 + 100 * random.normal()
                metrics[SIGNAL] = signal + 0.5 * random.normal()
            writers.write(step, metrics, at=1000.0 + step)


def test_the_names_are_those_that_a_step_records():
    assert (NOISE, SIGNAL) == noise_scale.METRICS


@pytest.mark.parametrize(
    ("batch", "said", "twice", "half"),
    [
        # (1 + 500/2B)/(1 + 500/B), and half of (1 + 1000/B)/(1 + 500/B).
        (50.0, "small; twice the batch would take 55% of the steps", "55%", "95%"),
        (500.0, "about as large as pays", "75%", "75%"),
        (5000.0, "large; half the batch would take 55% of the tokens", "95%", "55%"),
    ],
)
def test_the_report_says_how_large_the_batch_might_have_been(tmp_path, capsys, batch, said, twice, half):
    write_run(tmp_path, batch)
    heading, header, rows = make_batch_table(read_metrics(tmp_path))
    assert said in heading
    assert [row[0] for row in rows] == ["40", "80", "120", "160", "200"]
    assert all(len(row) == len(header) for row in rows)
    for found, expected in zip(rows[-1][4:], (twice, half), strict=True):
        assert float(found.rstrip("%")) == pytest.approx(float(expected.rstrip("%")), abs=2)
    assert report(str(tmp_path)) == 0
    assert said.split(";")[0] in " ".join(capsys.readouterr().out.split())
    assert said in (tmp_path / "report" / "report.html").read_text()


def test_a_run_that_recorded_none_has_no_such_table(tmp_path):
    write_run(tmp_path, 50.0, steps=3, recorded=False)
    assert make_batch_table(read_metrics(tmp_path)) is None


def test_noise_without_a_signal_is_no_verdict(tmp_path):
    write_run(tmp_path, 50.0, steps=3, signal=-5.0)
    table = make_batch_table(read_metrics(tmp_path))
    assert "signal is below their noise" in table.heading
    assert [row[3:] for row in table.rows] == [["–", "–", "–"]] * len(table.rows)


def test_a_single_step_is_a_moment(tmp_path):
    write_run(tmp_path, 500.0, steps=1)
    assert [moment.step for moment in noise_along(read_metrics(tmp_path))] == [1]
    assert Moment(1, 3.0, 500.0, 500.0).steps_at(2.0) == pytest.approx(0.75)
