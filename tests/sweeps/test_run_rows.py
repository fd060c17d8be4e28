"""A run as a row, and rows as what a law is fitted to."""

import json

import numpy as np
import pytest
from fake_runs import write_run

from t5x_scale.core.errors import UserError
from t5x_scale.laws import LAWS
from t5x_scale.sweeps.rows import read_row
from t5x_scale.sweeps.tables import find_valleys, make_data, read_rows

CHINCHILLA, KAPLAN = type(LAWS["chinchilla"]), type(LAWS["kaplan_joint"])


def test_the_quantities_of_a_run(tmp_path):
    row = read_row(write_run(tmp_path / "run", losses={"code": 3.0, "docs": 2.0}, epochs=4.0))
    table, matrices, norm = 640 * 16, 2 * 16 * 64, 16
    assert (row["params"], row["bare_params"]) == (table + matrices + norm, matrices + norm)
    assert (row["tokens"], row["steps"], row["batch_tokens"]) == (1280, 10, 128)
    assert row["flops"] == pytest.approx(1280 * (6 * (matrices + table) + 12 * 2 * 2 * 8 * 32))
    assert row["bare_flops"] == 6 * (matrices + norm) * 1280
    assert (row["unique_tokens"], row["epochs"]) == (320, 4)
    assert row["learning_rate"] == pytest.approx(0.1)
    assert row["loss"] == 2.5
    assert row["losses"] == {"code": 3.0, "docs": 2.0}
    assert row["shares"] == {"code": 0.5, "docs": 0.5}
    assert row["unit"] == "nats a token of code, docs, bytes"


def test_less_than_an_epoch_is_all_new(tmp_path):
    row = read_row(write_run(tmp_path / "run", epochs=0.3))
    assert (row["unique_tokens"], row["epochs"]) == (1280, 1)


def test_an_unfinished_run_and_none(tmp_path):
    with pytest.raises(UserError, match="step 4 of 10"):
        read_row(write_run(tmp_path / "run", trained=4))
    with pytest.raises(UserError, match=r"no training run.*run\.json"):
        read_row(str(tmp_path))
    with pytest.raises(UserError, match="there is no"):
        read_rows([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="neither a run"):
        read_rows([str(tmp_path / "empty")]) if (tmp_path / "empty").mkdir() is None else None


def test_runs_sweeps_and_tables_are_rows(tmp_path):
    write_run(tmp_path / "sweep" / "a")
    write_run(tmp_path / "sweep" / "b", width=32)
    assert [row["params"] > 15000 for row in read_rows([str(tmp_path / "sweep")])] == [False, True]
    (tmp_path / "sweep" / "rows.json").write_text(json.dumps([{"params": 7.0, "loss": 1.0}]))
    (tmp_path / "table.csv").write_text("params,tokens,loss,note\n1e5, 2e6,3.5,first\n")
    rows = read_rows([str(tmp_path / "sweep"), str(tmp_path / "table.csv")])
    assert [row["params"] for row in rows] == [7.0, 1e5]
    assert (rows[1]["tokens"], rows[1]["note"]) == (2e6, "first")


def test_a_law_without_tables_gets_bare_parameters(tmp_path):
    rows = read_rows([write_run(tmp_path / "run")])
    assert make_data(CHINCHILLA, rows)["params"] == rows[0]["params"]
    assert make_data(KAPLAN, rows)["params"] == rows[0]["bare_params"]


def test_what_a_law_needs_and_a_run_has_not(tmp_path):
    rows = [{"run": "one", "params": 1e5, "tokens": 1e6, "loss": 3.0}, {"run": "other", "params": 1e5, "loss": 3.0}]
    with pytest.raises(UserError, match="other has no tokens, which the law chinchilla needs"):
        make_data(CHINCHILLA, rows)
    with pytest.raises(UserError, match="no loss of prose; it has those of code"):
        make_data(type(LAWS["dcpt_share"]), read_rows([write_run(tmp_path / "run")]), "prose")


def test_the_share_and_the_loss_of_one_source(tmp_path):
    rows = read_rows([write_run(tmp_path / "run", losses={"code": 3.0, "docs": 2.0})])
    data = make_data(type(LAWS["dcpt_share"]), rows, "docs")
    assert (data["ratio"], data["loss"]) == (0.5, 2.0)


def test_valleys_of_budgets_that_are_met_about():
    """Budgets a few per cent apart, by rounding, are one; a lonely run is none."""
    rows = []
    for budget, best in ((1e12, 1e5), (1e13, 3e5)):
        for number, size in enumerate(np.geomspace(best / 3, best * 4, 5)):
            loss = 2 + 0.1 * np.log(size / best) ** 2
            rows.append({"run": "r", "params": size, "flops": budget * (1 + 0.008 * number), "loss": loss})
    rows.append({"run": "lonely", "params": 1e5, "flops": 5e13, "loss": 1.0})
    law = type(LAWS["chinchilla_isoflop"])
    assert [valley.params for valley in find_valleys(law, rows)] == pytest.approx([1e5, 3e5])
    assert make_data(law, rows)["params"] == pytest.approx([1e5, 3e5])
