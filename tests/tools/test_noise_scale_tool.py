"""The tool that tells a run's noise scale, on a record whose noise is known."""

import importlib.util
import pathlib

import numpy as np
import pytest

from t5x_scale.monitor.metric_log import format_metrics

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "noise_scale.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("noise_scale_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(directory, steps=200, **more):
    random = np.random.default_rng(0)
    lines = []
    for step in range(1, steps + 1):
        noise, signal = 1000.0 + 100 * random.normal(), 2.0 + 0.5 * random.normal()
        values = {"optim/gradient_noise": noise, "optim/gradient_signal": signal, **more}
        lines.append(format_metrics(step, 100.0 + step, {"train/loss": 3.0, "train/weight": 500.0, **values}))
    (directory / "metrics").mkdir(parents=True)
    (directory / "metrics" / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return str(directory)


def test_the_noise_scale_and_what_twice_the_batch_would_save(tool, tmp_path, capsys):
    assert tool.main([write(tmp_path), "--rows=4"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [50, 100, 150, 200]
    assert float(rows[-1][3]) == pytest.approx(500, rel=0.1)
    # At the critical batch: (1 + 1/2)/(1 + 1).
    assert rows[-1][4] in ("74%", "75%", "76%")


def test_noise_without_a_signal_is_no_number(tool, tmp_path, capsys):
    path = write(tmp_path, steps=3, **{"optim/gradient_signal": -1.0})
    assert tool.main([path, "--rows=1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[3:] == ["nan", "?"]


def test_runs_that_did_not_record_it_and_wrong_options_are_said(tool, tmp_path, capsys):
    assert tool.main([str(tmp_path)]) == 1
    assert "train with step.StepConfig.noise_scale = True" in capsys.readouterr().err
    for option in ("--rows=0", "--decay=1"):
        with pytest.raises(SystemExit):
            tool.main([str(tmp_path), option])
