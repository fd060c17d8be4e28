"""The command line of sweeps: what it lists, and what it refuses."""

import importlib.util
import json
import pathlib

import pytest

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "sweep.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("sweep_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path, **record):
    path.write_text(json.dumps({"output": str(path.parent / "runs"), **record}))
    return str(path)


def test_a_dry_run_lists_and_trains_nothing(tool, tmp_path, capsys):
    plan = {"family": "palm", "vocab_size": 640, "length": 128, "chips": "cpu"}
    grid = write(tmp_path / "a.json", plan=plan, axes={"params": [1e5, 2e5], "tokens": [1e6]})
    assert tool.main([grid, "--dry_run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 runs, 2.")
    assert not (tmp_path / "runs").exists()


def test_one_line_for_what_is_wrong(tool, tmp_path, capsys):
    good = write(tmp_path / "a.json", axes={"SEED": [1]})
    bad = write(tmp_path / "b.json", axes={"parms": [1]})
    cases = {
        (bad,): "nothing is called 'parms'",
        (good, good): "another grid writes to",
        (good, "--jobs=0"): "--jobs is 0",
        (str(tmp_path / "none.json"),): "cannot read the grid",
    }
    for words, part in cases.items():
        assert tool.main(list(words)) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert part in said
