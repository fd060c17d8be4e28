"""The table of predicted against measured steps, made from reports that are there already."""

import importlib.util
import json
import pathlib
import sys

import pytest

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "compare_published.py"


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("compare_published", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["compare_published", *map(str, words)])
        return module.main()

    return call


def write(folder, name, prediction):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"steps": [{"prediction": prediction}]}))


def test_reports_that_are_there_become_a_table(tool, tmp_path, capsys):
    model = {"tokens": 2048 * 2048, "full": 1.0, "causal": 0.5}
    write(tmp_path, "palm_540b_v4_2x3072", {"seconds": 17.6, "num_chips": 6144, "model": model})
    assert tool("palm_540b_v4_2x3072", f"--output={tmp_path}") == 0
    assert "| PaLM 540B, 6,144 v4 | 17.60 s | 17.60 s | -0 % |" in capsys.readouterr().out


def test_a_row_that_did_not_fit_is_one_line(tool, tmp_path, capsys):
    write(tmp_path, "palm_540b_v4_2x3072", None)
    assert tool("palm_540b_v4_2x3072", f"--output={tmp_path}") == 1
    assert "no prediction" in capsys.readouterr().err


def test_an_unknown_row_is_one_line(tool, tmp_path, capsys):
    assert tool("palm_540", f"--output={tmp_path}") == 1
    assert "nothing is published of 'palm_540'" in capsys.readouterr().err
