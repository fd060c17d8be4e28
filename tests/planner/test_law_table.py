"""Laws fitted to one's own runs take the place of the published ones."""

import json
import math

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.laws import LAWS
from t5x_scale.planner.budgets import make_budget
from t5x_scale.planner.law_table import is_fitted, load_laws
from t5x_scale.planner.plans import make_plan

OWN = {
    "law": "chinchilla",
    "constants": {"E": 1.0, "A": 30.0, "B": 60.0, "alpha": 0.25, "beta": 0.25},
    "intervals": {"E": [0.9, 1.1]},
    "data": {"runs": 30},
    "domain": {"params": [1e5, 3e6], "tokens": [1e6, 1e8]},
    "unit": "nats a token of stdlib",
}


def write(tmp_path, value):
    path = tmp_path / "laws.json"
    path.write_text(json.dumps(value))
    return str(path)


@pytest.mark.parametrize("value", [OWN, [OWN]])
def test_a_fitted_law_is_followed(tmp_path, value):
    laws = load_laws(write(tmp_path, value))
    assert is_fitted(laws["chinchilla"])
    assert laws["besiroglu"] is LAWS["besiroglu"]
    plan = make_plan(make_budget(params=1e6, tokens=2e7, chips="cpu"), laws)
    assert (plan["expected loss"].law, plan["expected loss"].confidence) == ("chinchilla", "fitted")
    expected = 1 + 30 / plan.shape.count.total**0.25 + 60 / plan.batch.tokens**0.25
    assert plan["expected loss"].value == pytest.approx(expected)
    assert "stdlib" in plan["expected loss"].text
    assert not plan["expected loss"].outside
    assert make_plan(make_budget(flops=1e13, chips="cpu"), laws)["parameters"].law == "chinchilla"


def test_its_error_is_the_band(tmp_path):
    laws = load_laws(write(tmp_path, {**OWN, "held_out_error": 0.05}))
    curve = make_plan(make_budget(params=1e6, tokens=2e7, chips="cpu"), laws).curve
    assert curve["low"][-1] == pytest.approx(curve["loss"][-1] * 0.85)
    assert curve["high"][-1] == pytest.approx(curve["loss"][-1] * 1.15)


def test_its_range_is_its_own(tmp_path):
    laws = load_laws(write(tmp_path, OWN))
    assert any("params" in line for line in laws["chinchilla"].outside(params=1e9, tokens=1e7))
    assert not LAWS["chinchilla"].outside(params=1e9, tokens=1e10)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({**OWN, "law": "chinchila"}, "chinchilla"),
        ({**OWN, "constants": {"Alpha": 1}}, "'alpha'"),
        ({**OWN, "constants": {"alpha": "much"}}, "expected a number"),
        ({"constants": {}}, "'law'"),
        ("text", "'law'"),
        ([], "holds no law"),
        ({**OWN, "domain": {"params": [5]}}, "domain is"),
        ({**OWN, "domain": {"params": 5}}, "domain is"),
        ({**OWN, "domain": [1, 2]}, "domain is"),
        ({**OWN, "domain": {"params": ["a", "b"]}}, "domain is"),
        ({**OWN, "domain": {"params": [1e9, 1e6]}}, "above the high end"),
        ({**OWN, "constants": {"A": 0, "B": 0}}, "is no law with E=1.69, A=0"),
        ({**OWN, "constants": {"alpha": 0}}, "is no law"),
        ({**OWN, "constants": {"alpha": -0.5}}, "is no law"),
        ({**OWN, "constants": {"alpha": -0.3, "beta": -0.3}}, "is no law"),
        ({**OWN, "constants": {"E": math.inf}}, "expected a number"),
        ({**OWN, "constants": {"E": 10**400}}, "expected a number"),
        ({**OWN, "held_out_error": -3}, "held_out_error is -3"),
        ({**OWN, "held_out_error": "x"}, "held_out_error is 'x'"),
        ({"law": "deepseek_learning_rate", "constants": {"coefficient": -1}}, "is no law"),
        ({"law": "dcpt", "constants": {"E": 1.5}}, "needs a number for each"),
    ],
)
def test_what_is_no_law(tmp_path, value, part):
    with pytest.raises(UserError, match=part):
        load_laws(write(tmp_path, value))
