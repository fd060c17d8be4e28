"""Coverage from samples, against counting and against problems whose chances are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.laws.repeated_sampling import Coverage, pass_at_k


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_the_product_is_the_ratio_of_binomials(case):
    n, c, k = case
    assert pass_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-12)


def test_many_samples_do_not_overflow():
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)
    assert pass_at_k([100, 100], [0, 100], 10) == 0.5


def test_heavy_tailed_problems_give_a_law_that_predicts_more_samples():
    random = np.random.default_rng(0)
    chances = random.beta(0.25, 4.0, 500)
    correct = random.binomial(512, chances)
    samples = [1, 2, 4, 8, 16, 32]
    data = {"samples": samples, "coverage": [pass_at_k(512, correct, k) for k in samples]}
    law = Coverage.fit(data).law
    assert law.predict(samples=128) == pytest.approx(pass_at_k(512, correct, 128), abs=0.03)


def test_what_makes_no_sense_is_said():
    for n, c, k in ((10, 11, 1), (10, 1, 11), (10, 1, 0)):
        with pytest.raises(UserError, match="at least k samples"):
            pass_at_k(n, c, k)
    with pytest.raises(UserError, match="must grow"):
        Coverage.through((1, 0.5), (10, 0.4))
    with pytest.raises(UserError, match="between 0 and 1"):
        Coverage(a=1.0, b=0.2).samples_for(1.0)
