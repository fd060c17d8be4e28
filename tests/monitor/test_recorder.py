"""Every step of every interval is on record, whatever the intervals are."""

import numpy as np
import pytest

from t5x_scale.monitor.metric_log import read_metrics
from t5x_scale.monitor.recorder import Recorder
from t5x_scale.monitor.status import StatusLine
from t5x_scale.monitor.throughput import Throughput
from t5x_scale.monitor.writers import MetricWriters

ROWS = 4


@pytest.fixture
def record(tmp_path):
    """Pushes intervals of a buffer whose row k mod 4 holds k; returns the series and the ends that were timed."""

    def run(intervals, waits):
        ends, clock, buffer = [], iter(range(1000)), np.zeros((ROWS, 2), np.float32)
        throughput = Throughput(10, clock=lambda: next(clock))
        completed = throughput.completed
        throughput.completed = lambda step, **options: (ends.append(step), completed(step, **options))[1]
        with MetricWriters(tmp_path) as writers, StatusLine(enabled=False) as line:
            recorder = Recorder(
                ("train/loss", "optim/grad_norm"),
                writers,
                throughput,
                line,
                total_steps=100,
                tokens_before=lambda step: 10 * step,
                at_interval=lambda step: {"data/a/tokens": 7 * step},
            )
            for first, end in intervals:
                for step in range(first, end):
                    buffer[step % ROWS] = step, -step
                recorder.push(first, end, buffer.copy(), wait=end in waits)
        return read_metrics(tmp_path).series, ends

    return run


@pytest.mark.parametrize("waits", [(12,), (3, 12), (3, 4, 9, 12)])
def test_every_step_is_written_once_with_its_own_row(record, waits):
    series, ends = record([(0, 3), (3, 4), (4, 8), (8, 9), (9, 12)], waits)
    assert series["train/loss"].steps.tolist() == list(range(1, 13))
    assert series["train/loss"].values.tolist() == list(range(12))
    assert series["optim/grad_norm"].values.tolist() == [-step for step in range(12)]
    assert series["train/tokens"].values.tolist() == [10 * step for step in range(1, 13)]
    assert ends[-1] == 12
    assert ends == sorted(set(ends))


def test_intervals_that_are_fetched_together_are_timed_together(record):
    series, ends = record([(0, 4), (4, 8), (8, 12), (12, 13)], waits=(4, 13))
    # 8 ... 12 and 12 ... 13 are fetched at once: alone, the last step would seem to take no time.
    assert ends == [4, 8, 13]
    assert series["throughput/tokens_per_second"].steps.tolist() == [8, 13]


def test_what_belongs_to_an_interval_is_written_at_its_end(record):
    series, ends = record([(0, 4), (4, 8), (8, 12)], waits=(12,))
    assert series["data/a/tokens"].steps.tolist() == ends
    assert series["data/a/tokens"].values.tolist() == [7 * end for end in ends]
