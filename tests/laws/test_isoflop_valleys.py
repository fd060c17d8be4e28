"""Valleys and envelopes lead back to the frontier of the law that made the runs."""

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.laws import LAWS, isoflop
from t5x_scale.laws.chinchilla import ISOFLOP_BUDGETS

LAW = LAWS["besiroglu"]


def runs_at(budgets, sizes=9, width=1.2, noise=0.0, seed=0):
    """Runs around the optimum of each budget."""
    random = np.random.default_rng(seed)
    flops = np.repeat(budgets, sizes)
    best = np.array([LAW.optimum(flops=c).params for c in flops])
    params = best * np.tile(np.exp(np.linspace(-width, width, sizes)), len(budgets))
    loss = LAW.loss(params=params, tokens=flops / 6 / params) * np.exp(random.normal(0, noise, len(flops)))
    return flops, params, loss


def test_a_parabola_is_found_exactly():
    params = np.geomspace(1e8, 1e10, 7)
    valley = isoflop.fit_valley(1e20, params, 2.5 + 0.03 * np.log(params / 9e8) ** 2)
    assert (valley.params, valley.loss, valley.curvature) == pytest.approx((9e8, 2.5, 0.06))
    assert valley.is_inside


def test_valleys_give_the_exponent_of_the_frontier():
    valleys = isoflop.fit_valleys(*runs_at(ISOFLOP_BUDGETS))
    assert [v.flops for v in valleys] == pytest.approx(ISOFLOP_BUDGETS)
    frontier = isoflop.frontier_of_valleys(valleys)
    assert frontier.exponent == pytest.approx(LAW.exponents[0], abs=0.005)
    for valley in valleys:
        best = LAW.optimum(flops=valley.flops)
        # A valley is no parabola far from its bottom.
        assert valley.params == pytest.approx(best.params, rel=0.1)
        assert valley.loss == pytest.approx(best["loss"], abs=0.005)
        assert frontier.params(valley.flops) == pytest.approx(valley.params, rel=0.01)


def test_noise_widens_the_interval_about_the_true_exponent():
    widths = []
    for noise in (1e-3, 3e-3):
        valleys = isoflop.fit_valleys(*runs_at(ISOFLOP_BUDGETS, noise=noise, seed=3))
        low, high = isoflop.frontier_of_valleys(valleys, samples=200, level=0.98).interval
        assert low - 0.005 < LAW.exponents[0] < high + 0.005
        widths.append(high - low)
    assert widths[1] > widths[0]


def test_the_envelope_of_curves_follows_the_frontier():
    curves = []
    for params in np.geomspace(5e7, 5e9, 25):
        tokens = params * np.geomspace(2, 200, 40)
        curves.append(isoflop.Curve(params, 6 * params * tokens, LAW.loss(params=params, tokens=tokens)))
    flops, params, loss = isoflop.envelope(curves, points=300)
    is_inner = (flops > 1e18) & (flops < 1e20)
    frontier = isoflop.fit_frontier(flops[is_inner], params[is_inner])
    assert frontier.exponent == pytest.approx(LAW.exponents[0], abs=0.02)
    best = [LAW.optimum(flops=c)["loss"] for c in flops[is_inner]]
    np.testing.assert_allclose(loss[is_inner], best, rtol=2e-3)


def test_what_is_no_valley_is_said():
    params = np.geomspace(1e8, 1e9, 5)
    with pytest.raises(UserError, match="no valley"):
        isoflop.fit_valley(1e20, params, 3 - 0.1 * np.log(params / 3e8) ** 2)
    with pytest.raises(UserError, match="at least 3 sizes, not 2"):
        isoflop.fit_valley(1e20, [1e8, 1e9, 1e9], [3, 2, 2.1])
    assert not isoflop.fit_valley(1e20, params, 2 + 0.1 * np.log(params / 5e9) ** 2).is_inside
    with pytest.raises(UserError, match="at least two of them"):
        isoflop.fit_frontier([1e20, 1e20], [1e9, 1.1e9])
    with pytest.raises(UserError, match="share budgets"):
        isoflop.envelope([isoflop.Curve(1e8, [1e18, 2e18], [3, 2.9]), isoflop.Curve(1e9, [1e20, 2e20], [2.5, 2.4])])
    with pytest.raises(UserError, match="inside the sizes"):
        isoflop.frontier_of_valleys([])
