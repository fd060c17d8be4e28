"""The tool that measures held-out spans row by row, on a finished run, as a user calls it."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import types

import pytest

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "span_accuracy.py"
OBJECTIVES = """
from __gin__ import dynamic_registration
from t5x_scale.data import objectives
EVAL_OBJECTIVES = (@objectives.CausalLm(), @objectives.SpanFromLeft(), @objectives.SpanFromBothSides())
objectives.SpanFromLeft.spans = 2
objectives.SpanFromBothSides.spans = 2
"""


def call(*words):
    return subprocess.run([sys.executable, TOOL, *map(str, words)], capture_output=True, text=True, timeout=120)


@pytest.fixture
def call_here(monkeypatch, capsys):
    """The same in this process, which has imported everything."""
    spec = importlib.util.spec_from_file_location("span_accuracy", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*words):
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, words)])
        return types.SimpleNamespace(returncode=module.main(), **capsys.readouterr()._asdict())

    return call


@pytest.fixture(scope="module")
def measured(finished, tmp_path_factory):
    """The counts of the finished run, and of it after 3 steps."""
    directory = tmp_path_factory.mktemp("counts")
    (directory / "spans.gin").write_text(OBJECTIVES)
    files = [f"--gin_file={finished.path / 'config.gin'}", f"--gin_file={directory / 'spans.gin'}"]
    early = f'--gin.evaluate.checkpoint_path="{finished.path}/checkpoints/{finished.steps - 3}"'
    for name, flags in (("last", []), ("early", [early])):
        result = call("measure", *files, *flags, f"--output={directory / name}.json")
        assert result.returncode == 0, result.stderr
    return directory


def test_what_is_measured(measured, runner, finished):
    runner.run("eval", f"--output={measured / 'eval.json'}", MODEL_DIR=str(finished.path), **source_of(finished))
    whole = json.loads((measured / "eval.json").read_text())["metrics"]
    record = json.loads((measured / "last.json").read_text())
    assert record["step"] == finished.steps
    [causal, both, left] = [record["rows"][name] for name in sorted(record["rows"])]
    [loss] = [value for name, value in whole.items() if name.endswith("/loss")]
    assert sum(causal["cross_entropy"]) / sum(causal["weight"]) == pytest.approx(loss, rel=1e-5)
    assert left["tokens"] == both["tokens"] != causal["tokens"]
    assert set(left["weight"]) == {6.0}


def source_of(finished):
    config = json.loads((finished.path / "run.json").read_text())
    return {"MIXTURE_OR_TASK_NAME": config["recorded"]["mixture"]}


def test_a_comparison(measured, call_here):
    last, early = measured / "last.json", measured / "early.json"
    result = call("compare", f"{last}:causal_lm", f"{early}:causal_lm", "--confidence=0.9")
    assert result.returncode in (0, 1), result.stderr
    [_, _, gain] = result.stdout.splitlines()
    assert gain.endswith("90% confidence")
    assert (float(gain.split("[")[1].split(",")[0]) > 0) == (result.returncode == 0)
    same = call_here("compare", f"{last}:span_from_left", f"{last}:span_from_left")
    assert same.returncode == 1
    assert same.out.splitlines()[2].split() == ["+0.0000", "[+0.0000,", "+0.0000]", "95%", "confidence"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "last.json:span_from_left", "early.json:causal_lm"], "did not score the same tokens"),
        (["compare", "last.json:spans", "last.json:causal_lm"], "has nothing of 'spans'; it has causal_lm, span_from_"),
        (["compare", "none.json:causal_lm", "last.json:causal_lm"], "write FILE:OBJECTIVE"),
        (["measure", "--output=x.json"], "--gin_file"),
    ],
)
def test_mistakes_are_said_in_one_line(measured, call_here, words, message):
    result = call_here(*(measured / word if word.endswith(("_lm", "_left", ":spans")) else word for word in words))
    assert result.returncode == 1
    assert result.err.count("\n") == 1
    assert message in result.err


def test_nothing_to_measure(finished, measured):
    result = call("measure", f"--gin_file={finished.path / 'config.gin'}", f"--output={measured / 'x.json'}")
    assert result.returncode == 1
    assert "EVAL_OBJECTIVES is empty" in result.stderr
    assert not (measured / "x.json").exists()
