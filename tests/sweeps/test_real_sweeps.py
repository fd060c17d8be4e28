"""Two runs of twelve thousand parameters by the ordinary command: one ends, one is told why it cannot begin."""

import json
import pathlib

import pytest

from t5x_scale.sweeps.run import describe, list_jobs, sweep
from t5x_scale.sweeps.tables import read_rows

TINY = pathlib.Path(__file__).parents[1] / "endtoend" / "tiny.gin"


@pytest.fixture
def grid(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    (tmp_path / "text.txt").write_text("to be learnt by heart, again and again\n" * 400)
    record = {
        "output": str(tmp_path / "runs"),
        "gin_files": [str(TINY)],
        "settings": {"MIXTURE_OR_TASK_NAME": f"text:{tmp_path}/text.txt", "MAX_EPOCHS": None, "TRAIN_STEPS": 4},
        "axes": {"BATCH_SIZE": [4, 0]},
    }
    (tmp_path / "grid.json").write_text(json.dumps(record))
    return str(tmp_path / "grid.json")


def test_a_run_that_ends_and_one_that_cannot(grid, tmp_path, capfd):
    assert describe(list_jobs([grid])).endswith("2 runs, 0 FLOPs")
    assert sweep([grid]) == 1
    (row,) = read_rows([str(tmp_path / "runs")])
    assert (row["steps"], row["tokens"], row["batch_tokens"]) == (4, 4 * 4 * 32, 128)
    assert 10_000 < row["params"] < 15_000
    assert row["loss"] == pytest.approx(6.5, abs=1)
    said = capfd.readouterr()
    assert "BATCH_SIZE_0 ended with code 1" in said.err
    assert "t5x_scale: error: " in said.err
    assert "1 of 2 runs" in said.out
    assert "done: 4 steps" in (tmp_path / "runs" / "BATCH_SIZE_4" / "train.log").read_text()
