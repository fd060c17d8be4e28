"""A law that has no number leaves a plan with a line that says so, and takes nothing else away."""

import dataclasses

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.laws import LAWS
from t5x_scale.planner import expectations, gin_files, rates, record, table
from t5x_scale.planner.allocations import FRONTIERS
from t5x_scale.planner.budgets import make_budget
from t5x_scale.planner.continuing import make_continuation
from t5x_scale.planner.known_models import find_base
from t5x_scale.planner.plans import make_plan
from t5x_scale.planner.vocabularies import APPROACHES


def silence(*names):
    """The laws, those of these names without a number for anything."""

    def nothing(self, **quantities):
        raise OverflowError

    silent = {"_value": nothing, "_optimum": nothing}
    kinds = {name: type(type(LAWS[name]).__name__, (type(LAWS[name]),), silent) for name in names}
    for name, kind in kinds.items():
        kind.quantities, kind.required = LAWS[name].quantities, LAWS[name].required
    return {**LAWS, **{name: kind() for name, kind in kinds.items()}}


# Those that speak about a new model of nine hundred million parameters.
SPEAKING = dict.fromkeys(
    (*FRONTIERS, *expectations.LOSSES, "kaplan_joint", "kaplan_learning_curve", *rates.BATCHES, *rates.LEARNING_RATES,
     *APPROACHES, rates.GROWTH)
)  # fmt: skip
BUDGET = make_budget(params=0.9e9, tokens=100e9)


@pytest.fixture(scope="module")
def whole():
    return make_plan(BUDGET, LAWS)


@pytest.mark.parametrize("name", SPEAKING)
def test_a_plan_stands_without_a_law(name, whole):
    plan = make_plan(BUDGET, silence(name))
    said = [line for line in plan.warnings if "left out" in line]
    # Some speak about the size and about the loss.
    assert 1 <= len(said) <= 2
    assert all(f": {name} is left out: it" in line for line in said)
    assert [choice.name for choice in plan.choices] == [choice.name for choice in whole.choices]
    for choice, before in zip(plan.choices, whole.choices, strict=True):
        assert [o.law for o in choice.opinions] == [o.law for o in before.opinions if o.law != name]
        assert choice.law != name
    assert plan.curve["law"] == plan["expected loss"].law
    assert said[0] in table.to_text(plan.choices, plan.warnings, "any", explain=True)
    assert said[0] in record.to_json(plan, "any")["warnings"]
    assert "is left out" in gin_files.run_text(plan, "any", "there").replace("\n# ", " ")


def test_where_nobody_has_a_number_there_is_one_line():
    for names, line in (
        (rates.BATCHES, "no law has a batch tokens for"),
        (expectations.LOSSES, "no law expects a loss here: besiroglu is left out"),
        (APPROACHES, "give --vocab_size"),
    ):
        with pytest.raises(UserError, match=line):
            make_plan(BUDGET, silence(*names), "llama3")
    given = make_plan(dataclasses.replace(BUDGET, vocab_size=32000), silence(*APPROACHES))
    assert len(given["vocabulary"].left_out) == 3


def test_no_law_asks_a_large_model_for_a_rate_below_zero():
    """Kaplan's line of the logarithm of the size crosses zero at twelve billion parameters."""
    choice = make_plan(make_budget(flops=3e24), LAWS)["learning rate"]
    assert min(opinion.value for opinion in choice.opinions) > 0
    assert choice.left_out[0].startswith("kaplan_learning_rate is left out: it says no number for params = ")


def test_a_learning_curve_without_a_root_is_left_out():
    """Fitted so that its loss is next to nothing, no steps lead to the run's."""
    curve = dataclasses.replace(LAWS["kaplan_learning_curve"], N_c=1e-20, S_c=1e-20)
    plan = make_plan(make_budget(flops=1e20), {**LAWS, curve.name: curve})
    (line,) = plan["expected loss"].left_out
    assert line.startswith("kaplan_learning_curve is left out: it knows of no fewest steps for ")
    assert curve.name not in [opinion.law for opinion in plan["expected loss"].opinions]
    assert plan["expected loss"].value == make_plan(make_budget(flops=1e20), LAWS)["expected loss"].value


def test_the_curve_begins_where_its_law_has_numbers():
    class Late(type(LAWS["besiroglu"])):
        def _value(self, *, params, tokens):
            if tokens < 1e10:
                raise OverflowError
            return super()._value(params=params, tokens=tokens)

    question = expectations.Question(1e9, 9e8, 2e10, 32000)
    curve = expectations.make_curve({**LAWS, "besiroglu": Late()}, question, "besiroglu")
    assert curve["law"] == "besiroglu"
    assert 1e10 <= curve["tokens"][0] < 1.1e10
    assert curve["tokens"][-1] == pytest.approx(2e10)


@pytest.mark.parametrize("name", ["cmr_940m", "upcycling", "upcycling_dense", "upcycling_scratch", *rates.BATCHES])
def test_a_continuation_stands_without_a_law(name):
    base = find_base(None, 0.94e9, 2e10, None, "llama")
    made = make_continuation(base, make_budget(params=0.94e9), silence(name), 1e9, None, "weak")
    said = [line for line in made.warnings if "left out" in line]
    assert len(said) == 1
    assert f": {name} is left out: it says no number for " in said[0]
    assert made["dense or upcycled"].value["best"] is None or not name.startswith("upcycling")
    assert "choices" in record.to_json(made, "any")


def test_a_fitted_law_of_shares_is_left_out_where_it_has_no_number():
    constants = next(type(LAWS["dcpt"]).starts())
    steep = {**LAWS, "dcpt": type(LAWS["dcpt"])(**{**constants, "alpha": 93.0})}
    base = find_base(None, 0.94e9, 2e10, None, "llama")
    made = make_continuation(base, make_budget(params=0.94e9), steep, 1e9, None, "weak")
    assert made["domain share"].left_out[0].startswith("dcpt is left out: it says no number for ")
    assert [opinion.law for opinion in made["domain share"].opinions] == ["cmr_940m"]
