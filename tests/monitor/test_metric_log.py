import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.monitor import metric_log
from t5x_scale.monitor.metric_log import check_names, format_event, format_metrics, read_metrics


def write(model_dir, *lines, end="\n"):
    path = metric_log.log_path(model_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + end)


def values(log, name="train/loss"):
    series = log.series[name]
    return dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def same_bits(a, b):
    return struct.pack("<d", a) == struct.pack("<d", b) or (math.isnan(a) and math.isnan(b))


@given(value=st.floats() | st.floats(width=32).map(np.float32) | st.integers(-(2**53), 2**53))
def test_a_number_comes_back_with_the_same_bits(tmp_path_factory, value):
    directory = tmp_path_factory.mktemp("run")
    line = format_metrics(3, 1.5, {"train/loss": value})
    json.loads(line, parse_constant=pytest.fail)  # Plain JSON: no bare NaN.
    write(directory, line)
    series = read_metrics(directory).series["train/loss"]
    assert series.steps.tolist() == [3]
    assert series.times.tolist() == [1.5]
    assert same_bits(float(value), series.values[0])


def test_the_last_line_of_a_step_counts(tmp_path):
    write(
        tmp_path,
        format_metrics(1, 1.0, {"train/loss": 5.0}),
        format_metrics(2, 2.0, {"train/loss": 4.0, "optim/grad_norm": 1.0}),
        format_metrics(2, 3.0, {"train/loss": 4.5}),
    )
    log = read_metrics(tmp_path)
    assert values(log) == {1: 5.0, 2: 4.5}
    assert values(log, "optim/grad_norm") == {2: 1.0}


def test_a_resume_voids_the_later_steps_it_may_not_reach(tmp_path):
    loss = {step: format_metrics(step, float(step), {"train/loss": float(step)}) for step in range(1, 8)}
    write(
        tmp_path,
        format_event(0, 0.0, "start", {}),
        *(loss[step] for step in range(1, 8)),
        format_event(4, 100.0, "start", {"devices": 8}),
        format_metrics(5, 105.0, {"train/loss": 50.0}),
    )
    log = read_metrics(tmp_path)
    assert values(log) == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 50.0}
    assert [(event["step"], event["furthest_step"]) for event in log.events] == [(0, 0), (4, 7)]
    assert log.events[1]["devices"] == 8
    assert log.seconds == 7.0 + 5.0  # Not the 93 seconds in which the run was dead.


def test_other_events_void_nothing(tmp_path):
    write(tmp_path, format_metrics(5, 1.0, {"train/loss": 1.0}), format_event(2, 2.0, "checkpoint", {"seconds": 3}))
    assert values(read_metrics(tmp_path)) == {5: 1.0}


def test_every_torn_end_is_tolerated(tmp_path):
    lines = [format_metrics(step, 1.0, {"train/loss": 1.0 / step}) for step in range(1, 4)]
    whole = "\n".join(lines) + "\n"
    for length in range(len(whole)):
        write(tmp_path, whole[:length], end="")
        log = read_metrics(tmp_path)
        complete = whole[:length].count("\n")
        assert len(log.series.get("train/loss", metric_log.Series([], [], [])).steps) == complete
        assert log.damaged_lines == 0


@pytest.mark.parametrize(
    "line",
    [
        "",
        "not json",
        "[1, 2]",
        "null",
        '{"time": 1.0, "train/loss": 1.0}',
        '{"step": true, "time": 1.0, "train/loss": 1.0}',
        '{"step": -1, "time": 1.0, "train/loss": 1.0}',
        '{"step": 1e3, "time": 1.0, "train/loss": 1.0}',
        '{"step": 1, "time": 1.0, "train/loss": "many"}',
        '{"step": 1, "time": 1.0, "train/loss": null}',
        '{"step": 1, "time": 1.0, "train/loss": 1' + "0" * 400 + "}",
        "[" * 100_000,
    ],
)
def test_damaged_lines_are_skipped_and_counted(tmp_path, line):
    good = format_metrics(1, 1.0, {"train/loss": 2.0})
    write(tmp_path, good, line, format_metrics(2, 2.0, {"train/loss": 1.0}))
    log = read_metrics(tmp_path)
    assert values(log) == {1: 2.0, 2: 1.0}
    assert log.damaged_lines == 1


@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("run")
    path = metric_log.log_path(directory)
    path.parent.mkdir()
    path.write_bytes(b'{"step": 1, "time": 1.0, "train/loss": 2.0}\n' + data)
    assert values(read_metrics(directory)) == {1: 2.0}


@pytest.mark.parametrize("position", [0, 3, 8, 30])
def test_one_byte_that_is_no_text_costs_its_line(tmp_path, position):
    """Wherever it is: also in a name, which would be another name and no damage otherwise."""
    lines = [format_metrics(step, float(step), {"train/loss": 3.0 - step}) for step in (1, 2, 3)]
    write(tmp_path, *lines)
    path = metric_log.log_path(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(lines[0]) + 1 + position] |= 0x80
    path.write_bytes(data)
    log = read_metrics(tmp_path)
    assert list(log.series) == ["train/loss"]
    assert values(log) == {1: 2.0, 3: 0.0}
    assert log.damaged_lines == 1


def test_nothing_written_yet(tmp_path):
    assert read_metrics(tmp_path).series == {}


def test_names_are_group_and_name():
    check_names({"train/loss": 1, "eval/my-task.v2/accuracy": 1})
    for name in ("loss", "train/", "/loss", "train//loss", "train/lo ss", "step"):
        with pytest.raises(ValueError, match="group/name"):
            check_names({name: 1})
