"""Optima and inverses against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.laws import LAWS, frontier
from t5x_scale.laws.chinchilla import Chinchilla

constants = st.fixed_dictionaries(
    {
        "E": st.floats(0.1, 3.0),
        "A": st.floats(50, 2000),
        "B": st.floats(50, 5000),
        "alpha": st.floats(0.2, 0.6),
        "beta": st.floats(0.2, 0.6),
    }
)


@settings(max_examples=30, deadline=None)
@given(constants, st.floats(15, 27))
def test_the_frontier_meets_its_first_order_condition_and_the_solver_meets_the_frontier(values, log_flops):
    law = Chinchilla(**values)
    flops = 10**log_flops
    best = law.optimum(flops=flops)
    of_size = law.alpha * law.A * best.params**-law.alpha
    of_data = law.beta * law.B * best.tokens**-law.beta
    assert of_size == pytest.approx(of_data, rel=1e-9)
    assert best.params * best.tokens * 6 == pytest.approx(flops)
    if 1 < best.params < flops / 6:
        params, tokens = frontier.compute_optimum(law, flops)
        # The loss is flat at its lowest point: its digits do not fix more of the size.
        assert params == pytest.approx(best.params, rel=1e-3)
        assert law.loss(params=params, tokens=tokens) == pytest.approx(best["loss"], rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.floats(8, 11), st.floats(9, 13))
def test_a_quantity_is_found_for_a_loss(log_params, log_tokens):
    law = LAWS["besiroglu"]
    params, tokens = 10**log_params, 10**log_tokens
    target = law.loss(params=params, tokens=tokens)
    assert frontier.quantity_for(law, "tokens", target, 1e6, 1e16, params=params) == pytest.approx(tokens, rel=1e-6)


def test_a_loss_that_no_data_reach_is_said():
    law = LAWS["besiroglu"]
    with pytest.raises(UserError, match=r"predicts loss from .* for tokens from 1e\+06 to 1e\+16, and not 1.5"):
        frontier.quantity_for(law, "tokens", 1.5, 1e6, 1e16, params=1e9)


def test_the_lowest_of_several_valleys_is_found_and_ends_count():
    found = frontier.minimise(lambda x: np.cos(4 * np.log(x)) + 0.1 * np.log(x), 1e-3, 1e3)
    assert np.log(found) == pytest.approx(-5.5041, abs=0.01)
    assert frontier.minimise(lambda x: x, 1e-3, 1e3) == pytest.approx(1e-3)
    assert frontier.minimise(lambda x: -x, 1e-3, 1e3) == pytest.approx(1e3)


@pytest.mark.parametrize("high", np.geomspace(1.0, 1e7, 40))
def test_a_root_at_an_end_is_found_whatever_its_logarithm_is_rounded_to(high):
    assert frontier.solve(lambda x: x - high, high * 1e-9, high) == pytest.approx(high, rel=1e-12)
    assert frontier.solve(lambda x: high - x, high, high * 1e9) == pytest.approx(high, rel=1e-12)


def test_where_a_function_has_no_root_or_no_number_there_is_a_line():
    with pytest.raises(UserError, match="nothing between 1 and 10 reaches"):
        frontier.solve(lambda x: 1e-200 * x, 1.0, 10.0)
    with pytest.raises(UserError, match="between 1 and 10 there is what is no number"):
        frontier.solve(lambda x: x - 5 if x in (1.0, 10.0) else math.nan, 1.0, 10.0)
