"""The noise scale against gradients whose noise is known, and the trade-off against its definition."""

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.laws import mccandlish


def test_the_estimate_is_unbiased_and_its_ratio_converges():
    random = np.random.default_rng(0)
    signal, deviation, small, large, steps = np.full(50, 0.3), 2.0, 8, 64, 4000
    noise = random.normal(0, deviation / np.sqrt(small), (steps, large // small, 50))
    parts = signal + noise
    of_small = np.mean(np.sum(parts**2, axis=-1), axis=1)
    of_large = np.sum(np.mean(parts, axis=1) ** 2, axis=-1)
    trace, squared = mccandlish.estimate(of_small, of_large, small, large)
    true_trace, true_signal = 50 * deviation**2, np.sum(signal**2)
    assert np.mean(trace) == pytest.approx(true_trace, rel=0.01)
    assert np.mean(squared) == pytest.approx(true_signal, rel=0.02)
    scale = mccandlish.noise_scale(trace, squared, decay=0.999)
    assert scale[-1] == pytest.approx(true_trace / true_signal, rel=0.03)
    # Ratios of single steps are biased, which is why the averages come first.
    assert abs(np.mean(trace / squared) / scale[-1] - 1) > 0.05


def test_averages_fade_alike_so_that_constants_stay():
    scale = mccandlish.noise_scale(np.full(10, 6.0), np.full(10, 2.0), decay=0.9)
    np.testing.assert_allclose(scale, 3.0)
    assert np.isnan(mccandlish.noise_scale(np.array([1.0]), np.array([-1.0]))[0])
    gap = mccandlish.noise_scale(np.array([6.0, np.nan, 6.0]), np.array([2.0, 1.0, 2.0]))
    np.testing.assert_allclose(gap, 3.0)


def test_steps_and_tokens_trade_off():
    law = mccandlish.StepsForBatch(S_min=1e4, B_crit=1e6)
    for batch in (1e4, 1e6, 1e8):
        steps = law.predict(batch_tokens=batch)
        assert (steps / 1e4 - 1) * (steps * batch / law.E_min - 1) == pytest.approx(1)
    assert law.predict(batch_tokens=1e6) == 2e4
    assert mccandlish.steps_factor(1e4, 1e6, 1e6) == pytest.approx(2e4 / law.predict(batch_tokens=1e4))
    rate = mccandlish.StepForBatch(largest=0.1, B_noise=1e6)
    assert rate.predict(batch_tokens=1e6) == pytest.approx(0.05)


def test_one_batch_size_says_nothing():
    with pytest.raises(UserError, match="two batch sizes"):
        mccandlish.estimate(1.0, 1.0, 64, 64)
