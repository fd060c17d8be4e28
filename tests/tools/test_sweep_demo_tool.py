"""The sweep demonstration from rows to its table, on runs that nobody trained: their losses are those of known laws."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from t5x_scale.laws import LAWS
from t5x_scale.planner.law_table import load_laws
from t5x_scale.sweeps.grid import load_grid
from t5x_scale.sweeps.jobs import make_jobs
from t5x_scale.sweeps.pool import Outcome

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "sweep_demo.py"
TRUE = {"E": 0.8, "A": 30.0, "B": 90.0, "alpha": 0.33}
LAW = type(LAWS["chinchilla"])(**TRUE, beta=0.33)
REPEATED = type(LAWS["data_constrained"])(**TRUE, R_D=10.0, R_N=5.0)
DOMAIN, GENERAL = "stdlib_code", "stdlib_docs"


@pytest.fixture
def tool(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("sweep_demo_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "train", lambda names, jobs: 0)
    monkeypatch.setattr(module, "Pool", lambda count: FakePool())
    monkeypatch.setattr(module, "read_row", lambda path: {"loss": 1.5, "flops": 1e13, "params": 2e5, "tokens": 6e6})
    fit_rows = module.fits.fit_rows
    monkeypatch.setattr(
        module.fits, "fit_rows", lambda *words, **more: fit_rows(*words, **{"samples": 3, "held_out": 0.0, **more})
    )
    return module


class FakePool:
    def train(self, jobs):
        assert [job.name for job in jobs] == ["MAX_EPOCHS_4"]
        assert "TRAIN_STEPS" in pathlib.Path(jobs[0].gin_files[1]).read_text()
        return Outcome(finished=[job.model_dir for job in jobs])


def make_row(job, number, of):
    """The row of a run of a grid, as if it had been trained on what the grid says."""
    rates = {DOMAIN: (number + 0.5) / of, GENERAL: 1 - (number + 0.5) / of}
    asked = {word: float(value) for word, value in (part.split("_", 1) for part in job.name.split("-")[:2])}
    params = asked.get("params", 2e5)
    tokens = asked.get("tokens") or asked.get("flops", 1e12) / 6 / params
    epochs = 2.0**number
    return {
        "run": job.model_dir, "params": params, "bare_params": 0.8 * params, "tokens": tokens, "epochs": epochs,
        "unique_tokens": tokens, "flops": 6 * params * tokens, "bare_flops": 4.8 * params * tokens,
        "loss": LAW.loss(params=params, tokens=tokens), "unit": "nats a token of bytes", "shares": rates,
        "losses": {DOMAIN: 2 + 0.1 / (rates[DOMAIN] + 0.1) ** 0.5, GENERAL: 2 + 0.1 / (rates[GENERAL] + 0.1) ** 0.5},
        **job.quantities,
    }  # fmt: skip


def write_rows(root, name):
    jobs = make_jobs(load_grid(f"gin/runs/sweep_demo/{name}.json"))
    rows = [make_row(job, number, len(jobs)) for number, job in enumerate(jobs)]
    if name == "epochs":
        for row in rows:
            row["unique_tokens"] = row["tokens"] / row["epochs"]
            names = ("params", "tokens", "unique_tokens")
            row["loss"] = REPEATED.loss(**{quantity: row[quantity] for quantity in names})
    (root / name).mkdir()
    (root / name / "rows.json").write_text(json.dumps(rows))
    return rows


def test_from_rows_to_the_table(tool, tmp_path, capsys):
    for name in (*tool.FIRST, *tool.THEN):
        write_rows(tmp_path, name)
    assert tool.main(["--jobs=1"]) == 0
    table = (tmp_path / "table.md").read_text()
    assert table.count("\n|") == 9
    for shape in ("L(N)", "L(D)", "IsoFLOP", "epochs", "share", "bits", "planned run"):
        assert shape in table
    law = load_laws(str(tmp_path / "laws.json"))["chinchilla"]
    assert law.loss(params=3e5, tokens=2e6) == pytest.approx(LAW.loss(params=3e5, tokens=2e6), rel=1e-3)
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())["choices"]
    assert plan["expected loss"]["law"] == "chinchilla"
    best = LAW.optimum(flops=8e12).params
    assert 0.5 < plan["parameters"]["value"] / best < 2
    found = json.loads((tmp_path / "results.json").read_text())["findings"]
    assert [one["title"] for one in found if one["came_out"]][:3] == ["L(N)", "L(D)", "IsoFLOP valleys"]
    assert len(list((tmp_path / "plots").glob("*.png"))) == 7
    assert np.isfinite(plan["expected loss"]["value"])


def test_a_stopped_sweep_is_told(tool, monkeypatch):
    monkeypatch.setattr(tool, "train", lambda names, jobs: 75)
    assert tool.main([]) == 75
