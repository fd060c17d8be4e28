"""Laws fitted to rows: known constants come back, the planner reads what is written, and shapes are judged."""

import json
import pathlib
import sys

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.laws import LAWS
from t5x_scale.planner.law_table import is_fitted, load_laws
from t5x_scale.sweeps import findings
from t5x_scale.sweeps.fits import fit_rows, to_json, to_text
from t5x_scale.sweeps.tables import read_rows

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))
import fit_laws

TRUE = {"E": 0.9, "A": 40.0, "B": 90.0, "alpha": 0.35, "beta": 0.33}


def make_rows(noise=0.002, **fixed):
    law = type(LAWS["chinchilla"])(**TRUE)
    random = np.random.default_rng(0)
    rows = []
    for params in np.geomspace(3e4, 2e6, 6):
        for tokens in np.geomspace(1e5, 6e6, 5):
            loss = law.loss(params=params, tokens=tokens) * np.exp(noise * random.normal())
            rows.append({"run": "r", "params": params, "tokens": tokens, "loss": loss, "unit": "nats a byte", **fixed})
    return rows


@pytest.fixture(scope="module")
def fitted():
    return fit_rows("chinchilla", make_rows(), samples=20)


def test_known_constants_come_back(fitted):
    assert fitted.law.alpha == pytest.approx(TRUE["alpha"], abs=0.05)
    assert fitted.law.loss(params=3e5, tokens=1e6) == pytest.approx(
        type(fitted.law)(**TRUE).loss(params=3e5, tokens=1e6), rel=0.005
    )
    assert 0 < fitted.held_out_error < 0.01
    assert np.abs(fitted.errors).max() < 0.01


def test_the_planner_plans_by_them(fitted, tmp_path):
    path = tmp_path / "laws.json"
    path.write_text(json.dumps([to_json(fitted)]))
    law = load_laws(str(path))["chinchilla"]
    assert is_fitted(law)
    assert law.unit == "nats a byte"
    assert law.loss(params=1e5, tokens=1e6) == fitted.law.loss(params=1e5, tokens=1e6)
    assert not law.outside(params=1e5, tokens=1e6)
    assert law.outside(params=1e9, tokens=1e6)


def test_what_is_printed(fitted):
    text = to_text(fitted)
    assert "30 rows, nats a byte" in text
    assert "0.34" in text.splitlines()[5]
    assert "on rows kept away" in text


def test_what_ends_at_its_bound_says_so():
    """Losses that fall faster than any power leave nothing of E; in some bootstraps only, of what is small."""
    rows = [{**row, "loss": row["loss"] - 1.1} for row in make_rows()]
    fitted = fit_rows("chinchilla", rows, samples=20)
    assert fitted.fit.at_bound == {"E": 0.0}
    lines = to_text(fitted).splitlines()
    assert lines[2].split()[:5] == ["E", "0", "at", "its", "bound"]
    assert "  E is at its bound: these data cannot tell it from 0" in lines
    assert to_json(fitted)["at_bound"] == {"E": 0.0}
    assert to_json(fitted)["intervals"]["E"] == [0.0, 0.0]
    noisy = fit_rows("chinchilla", [{**row, "loss": row["loss"] - 0.87} for row in make_rows(0.01)], samples=20)
    assert " 0 (bound) to 0." in to_text(noisy).splitlines()[2]
    assert "at its bound" not in to_text(noisy)
    assert "bound" not in to_text(fit_rows("chinchilla", make_rows(), samples=3))


def test_the_tool(tmp_path, capsys):
    table, laws = tmp_path / "table.csv", tmp_path / "out" / "laws.json"
    rows = [{**row, "bare_params": row["params"]} for row in make_rows() if row["tokens"] == make_rows()[0]["tokens"]]
    names = ("params", "bare_params", "tokens", "loss")
    lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
    table.write_text("\n".join(lines))
    words = [str(table), "--law=kaplan_params", "--samples=5", f"--output={laws}", f"--report={tmp_path}/plots"]
    assert fit_laws.main(words) == 0
    (entry,) = json.loads(laws.read_text())
    assert entry["law"] == "kaplan_params"
    assert (tmp_path / "plots" / "kaplan_params.png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert fit_laws.main([str(table), "--law=kaplan_learning_curve"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("law", "part"),
    [("chinchila", "chinchilla"), ("kaplan_learning_curve", "has no steps"), ("knowledge_capacity", "has no bits")],
)
def test_laws_that_cannot_be_fitted(law, part):
    with pytest.raises(UserError, match=part):
        fit_rows(law, make_rows())


def test_constants_that_run_away_are_only_a_bad_start():
    """Six runs at one number of tokens do not fix the constants of repeated data; the fit ends all the same."""
    rows = [row for row in make_rows() if row["tokens"] == make_rows()[0]["tokens"]]
    assert np.abs(fit_rows("data_constrained", rows, samples=0).errors).max() < 0.05


def test_few_rows_are_said_to_be_few():
    for rows, said in ((5, "5 rows for 5 constants: nothing is left"), (7, "7 rows for 5 constants: these intervals")):
        assert said in to_text(fit_rows("chinchilla", make_rows()[:rows], samples=3))
    assert "constants:" not in to_text(fit_rows("chinchilla", make_rows()[:8], samples=3))


def test_what_is_no_table_and_no_share(tmp_path):
    (tmp_path / "a.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(UserError, match=r"a\.csv is no table"):
        read_rows([str(tmp_path / "a.csv")])
    with pytest.raises(UserError, match="held_out is 1"):
        fit_rows("chinchilla", make_rows(), held_out=1.0)


def test_too_few_runs():
    with pytest.raises(UserError, match="cannot fix the 5 constants"):
        fit_rows("chinchilla", make_rows()[:3])


def test_losses_that_fall_as_a_power_came_out():
    rows = [{"run": "r", "tokens": t, "loss": 30 * t**-0.2} for t in (1e5, 2e5, 4e5, 8e5)]
    assert findings.power_law("L(D)", fit_rows("kaplan_tokens", rows, samples=0), "tokens").came_out
    rows[2]["loss"] *= 1.2
    assert not findings.power_law("L(D)", fit_rows("kaplan_tokens", rows, samples=0), "tokens").came_out


def valley_rows(centres):
    sizes = np.geomspace(3e4, 1e6, 6)
    return [
        {"run": "r", "params": n, "flops": budget, "loss": 2 + 0.1 * np.log(n / best) ** 2}
        for budget, best in centres.items()
        for n in sizes
    ]


def test_valleys_came_out_where_they_move_up():
    assert findings.valleys(valley_rows({1e12: 1e5, 1e13: 3e5})).came_out
    assert not findings.valleys(valley_rows({1e12: 3e5, 1e13: 1e5})).came_out
    assert not findings.valleys(valley_rows({1e12: 1e5, 1e13: 9e6})).came_out
    hill = [{**row, "loss": 4 - row["loss"]} for row in valley_rows({1e12: 1e5})]
    assert "no valley" in findings.valleys(hill).found


def test_repetition_came_out_where_many_epochs_hurt_and_few_do_not():
    rows = [{"epochs": e, "loss": loss} for e, loss in ((1, 2.0), (4, 2.02), (16, 2.1), (64, 2.6))]
    assert findings.repetition(rows).came_out
    assert not findings.repetition([*rows[:2], {"epochs": 64, "loss": 2.05}]).came_out
    assert not findings.repetition([rows[0], {"epochs": 4, "loss": 2.3}, *rows[2:]]).came_out


def test_the_trade_off_of_shares():
    rows = [{"shares": {"a": s}, "losses": {"a": 3 - s, "b": 2 + s}} for s in (0.1, 0.9, 0.5)]
    assert findings.trade_off(rows, "a", "b").came_out
    assert not findings.trade_off(rows, "b", "a").came_out


def test_bits_of_people():
    """A model that knows nothing of the values holds no bits of them; one that knows all holds the whole text."""
    bits, names, tokens, people = 24.0, 2**18, 16, 2000
    nothing, everything = np.log(names) + bits * np.log(2), np.log(people)

    def row(params, epochs, known):
        loss = (nothing + known * (everything - nothing)) / tokens
        return {"people": people, "bare_params": params, "epochs": epochs, "loss": loss}

    rows = [row(10_000, 100, 0.2), row(20_000, 100, 0.4), row(20_000, 25, 0.1), row(20_000, 400, 0.8)]
    found = findings.knowledge(rows, bits, names, tokens)
    assert found.came_out
    assert "20k x 100: 1.24 (40% known)" in found.found.replace("1.25", "1.24")
    assert not findings.knowledge([*rows[:3], row(20_000, 400, 0.05)], bits, names, tokens).came_out


def test_a_prediction_and_the_table():
    run = {"params": 2e5, "tokens": 1e6, "flops": 1e13}
    found = findings.prediction(2.0, {**run, "loss": 2.01}, 5e12)
    assert found.came_out
    assert "error -0.50%; 200k on 1.00M tokens, 1e+13 FLOPs, 2.0 times" in found.found
    assert not findings.prediction(2.0, {**run, "loss": 2.2}, 5e12).came_out
    assert not findings.prediction(2.0, None, 5e12).came_out
    assert "| the planned run |" in findings.to_markdown([found], "today")
