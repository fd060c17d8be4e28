"""What every law keeps to, whatever it says."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.laws import LAWS, Domain, Law, find_law
from t5x_scale.laws.chinchilla import Chinchilla
from t5x_scale.laws.constants import CONFIDENCES, Constant, worst_confidence

# A plausible value of every quantity that a law of this repository may take; laws that take another say so here.
PLAUSIBLE = {
    "params": 1e9,
    "tokens": 2e10,
    "flops": 1e20,
    "unique_tokens": 5e9,
    "steps": 1e4,
    "loss": 3.0,
    "batch_tokens": 5e5,
    "vocab_size": 32000.0,
    "embed_dim": 2048.0,
    "context_length": 4096.0,
    "samples": 16.0,
    "reference_tokens": 1e9,
    "reference_batch": 1e5,
}

DENSE = {name: law for name, law in LAWS.items() if set(law.quantities) <= PLAUSIBLE.keys()}

# What more of leads to a lower loss.
RESOURCES = ("params", "tokens", "flops", "unique_tokens", "steps", "context_length")


def with_constants(law: Law) -> Law:
    """The law with its starts in place of constants that are not published."""
    return type(law)(**next(type(law).starts())) if math.isnan(sum(c.value for c in law.constants.values())) else law


def quantities_of(law: Law) -> dict[str, float]:
    return {name: PLAUSIBLE[name] for name in law.quantities}


def test_dense_laws_are_all_here():
    assert len(DENSE) >= 50


@pytest.mark.parametrize("name", LAWS)
def test_a_law_says_what_it_is_and_where_it_is_from(name):
    law = LAWS[name]
    assert law.name == name
    assert law.source
    assert law.unit
    about, constants = type(law).__doc__.split("Constants:")
    assert not about.startswith(f"{type(law).__name__}("), "a docstring of its own, not the one of dataclasses"
    assert all(f"{constant} = " in constants for constant in law.constants)
    assert law.confidence in CONFIDENCES
    for entry in law.constants.values():
        assert entry.source
        assert entry.confidence in CONFIDENCES


@pytest.mark.parametrize("name", DENSE)
def test_arrays_give_what_numbers_give(name):
    law = with_constants(DENSE[name])
    scales = np.array([0.5, 1.0, 2.0])
    quantities = {key: value * scales for key, value in quantities_of(law).items()}
    found = np.broadcast_to(law.predict(**quantities), scales.shape)
    one_by_one = [law.predict(**{key: value[i] for key, value in quantities.items()}) for i in range(3)]
    assert all(isinstance(value, float) for value in one_by_one)
    np.testing.assert_allclose(found, one_by_one, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name, law in DENSE.items() if law.predicts == "loss"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_more_of_a_resource_never_raises_a_loss(name, data):
    law = with_constants(DENSE[name])
    base = {key: value * data.draw(st.floats(0.05, 20.0)) for key, value in quantities_of(law).items()}
    resource = data.draw(st.sampled_from([key for key in base if key in RESOURCES]))
    more = {**base, resource: base[resource] * data.draw(st.floats(1.0, 100.0))}
    if "unique_tokens" in base:
        more["unique_tokens"] = max(more["unique_tokens"], base["unique_tokens"])
    assert law.loss(**more) <= law.loss(**base) + 1e-12


@pytest.mark.parametrize("name", [name for name, law in DENSE.items() if law.required])
def test_what_is_missing_or_wrong_is_said_in_one_line(name):
    law = with_constants(DENSE[name])
    first = law.required[0]
    for bad in (0.0, -1.0, math.nan, math.inf, "many"):
        with pytest.raises(UserError, match=first):
            law.predict(**{**quantities_of(law), first: bad})
    with pytest.raises(UserError, match=f"needs .*{first}"):
        law.predict()
    with pytest.raises(UserError, match=f"did you mean '{first}'"):
        law.predict(**{f"{first}s" if not first.endswith("s") else first[:-1]: 1.0})


# From the smallest to the largest number, and what is none.
EXTREMES = (5e-324, 1e-308, 1e-30, 1e-3, 0.5, 1.0, 1e3, 1e30, 1e308)
NO_NUMBERS = (math.nan, math.inf, -math.inf, -1e-308)


@pytest.mark.parametrize("name", LAWS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
@pytest.mark.filterwarnings("error")
def test_whatever_is_asked_there_is_a_finite_number_or_one_line(name, data):
    law = with_constants(LAWS[name])
    quantities = {key: data.draw(st.sampled_from(EXTREMES), key) for key in law.quantities}
    said = number_or_line(law.predict, quantities)
    assert said is None or math.isfinite(said)
    number_or_line(law.predict, {key: np.array([value, value]) for key, value in quantities.items()})
    for key in law.quantities:
        with pytest.raises(UserError, match=f"{key} is "):
            law.checked(key, data.draw(st.sampled_from(NO_NUMBERS)))


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.filterwarnings("error")
def test_whatever_the_budget_there_is_a_finite_optimum_or_one_line(name):
    law = with_constants(LAWS[name])
    for budget in [{key: value} for key in ("flops", "params", "tokens") for value in (*EXTREMES, *NO_NUMBERS)]:
        best = number_or_line(law.optimum, budget)
        assert best is None or all(math.isfinite(value) for value in best.values.values()), budget


def number_or_line(function, quantities):
    """What a function says, or None for a line that names one of the quantities."""
    try:
        return function(**quantities)
    except UserError as error:
        line = str(error)
    assert "\n" not in line
    assert not quantities or any(key in line for key in quantities), line
    return None


def test_the_most_extreme_quantity_is_named_with_the_range_of_the_fit():
    with pytest.raises(UserError, match=r"kaplan_learning_curve says no number for steps = 1e-308; "):
        LAWS["kaplan_learning_curve"].predict(params=1e30, steps=1e-308)
    with pytest.raises(UserError, match=r"flops = 1\.5; it was fitted from 3e\+19 to 1e\+21"):
        LAWS["optimal_sparsity"].optimum(flops=1.5)


@pytest.mark.parametrize("name", DENSE)
def test_an_optimum_spends_its_budget_and_says_what_it_predicts(name):
    law = with_constants(DENSE[name])
    try:
        best = law.optimum(flops=1e20)
    except UserError as error:
        pytest.fail(str(error))
    if best is None:
        return
    assert best["flops"] == pytest.approx(1e20)
    assert best.law == name
    assert all(math.isfinite(value) and value > 0 for value in best.values.values())
    if name != "deepseek_model":
        assert 6 * best.params * best.tokens == pytest.approx(1e20, rel=1e-9)
    for wrong in ({}, {"flops": -1.0}, {"flop": 1e20}, {"flops": 1e20, "ratio": 0.5}):
        with pytest.raises(UserError):
            law.optimum(**wrong)


def test_what_a_law_does_not_predict_it_does_not_give():
    with pytest.raises(UserError, match="predicts learning_rate"):
        LAWS["porian_learning_rate"].loss(params=1e9)
    with pytest.raises(UserError, match=r"no published S_min, B_crit: fit it"):
        LAWS["mccandlish_steps"].predict(batch_tokens=1e5)
    with pytest.raises(UserError, match="did you mean 'chinchilla'"):
        find_law("chinchila")


def test_a_domain_names_quantity_value_and_range_and_looks_at_both_ends_of_arrays():
    domain = Domain(params=(7e7, 1.6e10), tokens=(5e9, 5e11))
    assert domain.outside(params=1e9, tokens=2e10) == []
    assert domain.outside(params=1e12) == ["params = 1e+12 is outside 7e+07 to 1.6e+10"]
    assert len(domain.outside(params=np.array([1e3, 1e9, 1e12]))) == 2
    assert domain.outside(vocab_size=1.0, params=None) == []
    assert LAWS["bergsma_timescale"].outside(params=1e9) == ["where the law bergsma_timescale was fitted is not known"]
    assert "far below" in LAWS["data_constrained"].outside(params=10.0, tokens=1e10)[0]
    assert LAWS["data_constrained"].outside(params=1e8, tokens=1e10) == []
    with pytest.raises(UserError, match="did you mean 'params'"):
        LAWS["chinchilla"].outside(parmas=1e15)
    with pytest.raises(UserError, match="above the high end"):
        Domain(params=(2.0, 1.0))


def test_constants_carry_their_source_until_they_are_replaced():
    law = Chinchilla()
    assert law.confidence == "high"
    assert float(law.constants["alpha"]) == 0.34
    assert "Hoffmann" in law.constants["alpha"].source
    mine = dataclasses.replace(law, alpha=0.4)
    assert mine.constants["alpha"] == Constant(0.4, "fitted or given", "fitted")
    assert mine.constants["A"] == law.constants["A"]
    assert "A = 482.01 ± 124.58 (high): Besiroglu et al. 2024" in type(LAWS["besiroglu"]).__doc__
    with pytest.raises(UserError, match="did you mean 'high'"):
        Constant(1.0, "nowhere", "hihg")


def test_the_least_sure_constant_speaks_for_a_law():
    assert worst_confidence("high", "low", "medium") == "low"
    assert LAWS["shuai_batch"].confidence == "medium"
    assert LAWS["linear_complexity_tnl"].confidence == "medium"
    assert LAWS["chinchilla_isoflop"].confidence == "medium"
    assert LAWS["mccandlish_steps"].confidence == "low"


def test_laws_are_quick_to_import_and_bring_neither_a_backend_nor_solvers():
    program = (
        "import sys; from t5x_scale.laws import LAWS; LAWS['besiroglu'].optimum(flops=1e21); "
        "print([name for name in ('jax', 'flax', 'gin', 'tensorflow', 'scipy.optimize') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


STEEP = {"E": 1.0, "A": 2.0, "alpha": 93.0, "B": 1.0, "eta": 0.3, "beta": 0.3, "C": 0.1, "epsilon": 0.1, "gamma": 0.5}


@pytest.mark.parametrize(
    ("law", "quantities", "off"),
    [
        # Two quantities with ranges, and of an array not its first number.
        (LAWS["growth_timing"], {"params": 1e9, "flops": 1.0}, "flops = 1; it was fitted from 8e"),
        (LAWS["vocabulary_parametric"], {"params": np.array([1e9, 1e-300])}, "params = 1e-300; it was fitted from 3"),
        # What the law has no range of is usual among others, and further from one than the other from its range.
        (type(LAWS["dcpt"])(**STEEP), {"params": 1e5, "tokens": 6e12, "ratio": 0.5}, "params = 1e.05; it was fitted"),
        (type(LAWS["dcpt"])(**STEEP), {"params": 1e5, "tokens": 6e12, "ratio": 0.0}, "params = 1e.05; it was fitted"),
        (LAWS["vocabulary_parametric"], {"params": 1e-3, "embed_dim": 4096.0, "flops": 1e21}, "params = 0.001; it"),
    ],
)
def test_each_quantity_is_judged_by_its_own_range(law, quantities, off):
    with pytest.raises(UserError, match=f"says no number for {off}"):
        law.predict(**quantities)
