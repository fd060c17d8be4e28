"""The tool that finds where two runs part, on records with differences planted in them."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from t5x_scale.monitor.comparison import count_between, relative_difference
from t5x_scale.monitor.metric_log import format_event, format_metrics

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "compare_runs.py"
RECORD = {"environment": {"jax": "0.10.2"}, "recorded": {"batch_size": [[0, 8]]}, "command_line": "t5x_scale train A"}


def value(step, salt=0.0):
    return float(np.float32(3.0 / (step + 1) + salt))


def write(directory, lines, record=RECORD):
    (directory / "metrics").mkdir(parents=True)
    (directory / "metrics" / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if record is not None:
        (directory / "run.json").write_text(json.dumps(record))
    return directory


def step_lines(first, last, salt=0.0, **more):
    for step in range(first, last + 1):
        speed = {"throughput/tokens_per_second": 1000.0 + 7 * step + salt}
        yield format_metrics(step, 100.0 + step, {"train/loss": value(step, salt), **speed, **more})


def undisturbed(last=20):
    return [format_event(0, 99.0, "start", {"devices": 1}), *step_lines(1, last)]


@pytest.fixture
def compare(capsys, monkeypatch):
    """Calls the tool in this process; the exit code and both streams, as of a process."""
    spec = importlib.util.spec_from_file_location("compare_runs", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["compare_runs.py", *map(str, words)])
        code = tool.main()
        return types.SimpleNamespace(returncode=code, **capsys.readouterr()._asdict())

    return call


def test_as_a_program(tmp_path):
    words = [sys.executable, TOOL, write(tmp_path / "a", undisturbed()), tmp_path / "a"]
    assert subprocess.run(words, capture_output=True, timeout=60).returncode == 0


def test_equal_but_for_speed(compare, tmp_path):
    left = write(tmp_path / "a", undisturbed())
    other = [line.replace('tokens_per_second": 10', 'tokens_per_second": 20') for line in undisturbed()]
    right = write(tmp_path / "b", other, {**RECORD, "command_line": "t5x_scale train B"})
    result = compare(left, right)
    assert result.returncode == 0, result.err
    assert "equal: every number of every step has the same bits" in result.out
    assert "their records are equal" in result.out


def test_the_last_bit_of_one_step(compare, tmp_path):
    lines = undisturbed()
    record = json.loads(lines[13])
    record["train/loss"] = float(np.nextafter(np.float32(record["train/loss"]), np.float32(np.inf)))
    lines[13] = json.dumps(record)
    changed = {**RECORD, "environment": {"jax": "0.11.0"}}
    result = compare(write(tmp_path / "a", undisturbed()), write(tmp_path / "b", lines, changed))
    assert result.returncode == 1
    assert "they part at step 13, in train/loss" in result.out
    assert "1 numbers apart" in result.out
    assert "1 of 20 steps differ" in result.out
    assert 'environment/jax: "0.10.2" -> "0.11.0"' in result.out


def test_a_restart_and_a_rewind_count_as_they_were_done_last(compare, tmp_path):
    resumed = [*undisturbed(12), format_event(8, 200.0, "start", {"devices": 1}), *step_lines(9, 20)]
    # Steps 9 to 14 of a timeline that was given up.
    rewound = [*undisturbed(8), *step_lines(9, 14, salt=0.5), format_event(8, 300.0, "rewind", {}), *step_lines(9, 20)]
    left = write(tmp_path / "a", undisturbed())
    for name, lines, said in (("b", resumed, "1 restarts, 0 rewinds"), ("c", rewound, "0 restarts, 1 rewinds")):
        result = compare(left, write(tmp_path / name, lines))
        assert result.returncode == 0, result.out
        assert said in result.out
    bad = [*undisturbed(12), format_event(8, 200.0, "start", {"devices": 1}), *step_lines(9, 20, salt=1e-3)]
    result = compare(left, write(tmp_path / "d", bad))
    assert result.returncode == 1
    assert "they part at step 9, in train/loss" in result.out
    assert "12 of 20 steps differ" in result.out


def test_what_only_one_run_has(compare, tmp_path):
    left = write(tmp_path / "a", undisturbed())
    longer = write(tmp_path / "b", undisturbed(22), None)
    result = compare(left, longer)
    assert result.returncode == 1
    assert "step 21  train/loss: B has it, A has not; 2 of 22 steps differ" in result.out
    assert "run.json: the records are not compared" in result.out
    evaluated = [*undisturbed(), format_metrics(10, 400.0, {"eval/text/loss": 2.0})]
    result = compare(left, write(tmp_path / "c", evaluated))
    assert "they part at step 10, in eval/text/loss" in result.out


def with_tokens(lines, steps, salt=0):
    """The same lines, those of some steps with what the end of an interval puts on record."""
    for line in lines:
        record = json.loads(line)
        if "event" not in record and record["step"] in steps:
            record |= {"data/text/tokens": 64 * record["step"] + salt, "data/text/epochs": record["step"] / 7}
        yield json.dumps(record)


def test_where_a_run_was_stopped_makes_no_difference(compare, tmp_path):
    """It ends an interval, of which the other run has no end there."""
    left = write(tmp_path / "a", with_tokens(undisturbed(), {5, 10, 15, 20}))
    lines = [*undisturbed(7), format_event(7, 200.0, "start", {"devices": 1}), *step_lines(8, 20)]
    result = compare(left, write(tmp_path / "b", with_tokens(lines, {5, 7, 10, 15, 20})))
    assert result.returncode == 0, result.out
    assert "1 restarts" in result.out
    result = compare(left, write(tmp_path / "c", with_tokens(lines, {5, 7, 10, 15, 20}, salt=1)))
    assert result.returncode == 1
    assert "they part at step 5, in data/text/tokens" in result.out
    assert "4 of 4 steps differ" in result.out
    result = compare(left, write(tmp_path / "d", undisturbed()))
    assert "step 5  data/text/epochs: A has it, B has not; 4 of 4 steps differ" in result.out


def test_a_step_that_one_run_has_not_is_a_difference(compare, tmp_path):
    left = write(tmp_path / "a", undisturbed())
    lines = [line for line in undisturbed() if json.loads(line)["step"] != 7]
    result = compare(left, write(tmp_path / "b", lines))
    assert result.returncode == 1
    assert "step 7  train/loss: A has it, B has not; 1 of 20 steps differ" in result.out


def test_nothing_to_compare(compare, tmp_path):
    result = compare(write(tmp_path / "a", undisturbed()), tmp_path / "absent")
    assert result.returncode == 1
    assert result.err.startswith("error: ")
    assert "holds no metrics" in result.err


@pytest.mark.parametrize(
    ("left", "right", "apart"),
    [
        (1.0, 1.0, 0),
        (1.0, float(np.nextafter(np.float32(1), np.float32(2))), 1),
        (0.1, float(np.nextafter(0.1, 1)), 1),
        (0.0, -0.0, 1),
        (float(np.float32(1e-45)), -float(np.float32(1e-45)), 2),
        (float("nan"), float("nan"), 0),
        (float("inf"), float(np.finfo(np.float32).max), 1),
        (float("inf"), float("-inf"), 2 * 0x7F800000),
    ],
)
def test_numbers_between(left, right, apart):
    assert count_between(left, right) == count_between(right, left) == apart


def test_relative_differences():
    assert relative_difference(1.0, 0.5) == 0.5
    assert relative_difference(0.0, -0.0) == relative_difference(float("nan"), float("nan")) == 0.0
    assert relative_difference(float("nan"), 1.0) == float("inf")
