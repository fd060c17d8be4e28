"""Knowledge, precision, quantised training, frozen parameters and growth: published numbers, closed forms, fits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.laws import LAWS, growth, knowledge, quantised_training, trainable
from t5x_scale.laws.besiroglu import Besiroglu
from t5x_scale.laws.precision import Precision


def test_a_person_of_bios_is_47_59_bits():
    assert f"{knowledge.attribute_bits():.2f}" == "47.59"
    # Losses that know nothing store nothing; losses of zero store everything.
    nothing = knowledge.stored_bits(1000, math.log(knowledge.BIOS_NAMES), knowledge.attribute_bits() * math.log(2))
    assert nothing == pytest.approx(0.0, abs=1e-6)
    everything = knowledge.stored_bits(1000, 0.0, 0.0)
    assert everything == pytest.approx(1000 * (math.log2(1.6e8) + 47.5916), rel=1e-5)
    half = knowledge.stored_bits(10, 1.0, 2.0, value_bits=20.0, names=1024)
    assert half == pytest.approx(10 * (10 + 20 - 3 / math.log(2)))


def test_two_bits_a_parameter_at_1000_exposures_and_one_at_100():
    law = LAWS["knowledge_capacity"]
    assert law.predict(params=1e8) == pytest.approx(2e8)
    assert law.predict(params=1e8, exposures=100) == pytest.approx(1e8)
    assert law.predict(params=1e8, exposures=1e5) == pytest.approx(2e8)
    assert law.outside(exposures=1e5) == ["exposures = 1e+05 is outside 100 to 1000"]
    assert law.predict(params=1e8, exposures=[10.0, 1.0]).tolist() == [0.0, 0.0]
    assert law.predict(params=1e8, weight_bits=8) == pytest.approx(2e8)
    assert law.predict(params=1e8, weight_bits=4) == pytest.approx(0.7e8)
    assert law.predict(params=1e8, experts=32) == pytest.approx(2e8 / 1.3)
    gated = LAWS["knowledge_capacity_gated"]
    assert gated.predict(params=1e8, exposures=100) == pytest.approx(1e8 / 1.3)
    assert gated.predict(params=1e8) == pytest.approx(2e8)
    assert law.predict(params=law.params_for(3e9, 300), exposures=300) == pytest.approx(3e9)
    with pytest.raises(UserError, match="knows weight_bits of 4 and of 8 or more"):
        law.predict(params=1e8, weight_bits=5)
    with pytest.raises(UserError, match="predicts bits"):
        law.loss(params=1e8)


def test_capacity_is_found_from_measured_bits():
    random = np.random.default_rng(0)
    law = knowledge.KnowledgeCapacity(rich=1.7, scarce=0.8)
    params = np.exp(random.uniform(*np.log([3e5, 3e6]), 60))
    exposures = random.choice([100.0, 200.0, 500.0, 1000.0], 60)
    bits = law.predict(params=params, exposures=exposures) * np.exp(random.normal(0, 0.05, 60))
    fixed = {"int4": 0.7, "mixture": 1.3}
    fit = knowledge.KnowledgeCapacity.fit(
        {"params": params, "exposures": exposures, "bits": bits}, fixed=fixed, samples=40, level=0.98, delta=None
    )
    for name in ("rich", "scarce"):
        low, high = fit.intervals[name]
        assert low - 0.02 <= getattr(law, name) <= high + 0.02


def test_the_best_precision_is_the_papers_seven_bits_whatever_the_compute():
    law = LAWS["precision"]
    low, high = law.optimum(flops=1e19), law.optimum(flops=1e23)
    assert low["bits"] == pytest.approx(7.0, abs=0.05)
    assert high["bits"] == pytest.approx(low["bits"], rel=1e-6)
    for best in (low, high):
        assert 6 / 16 * best["bits"] * best.params * best.tokens == pytest.approx(best["flops"])
        for bits in (4.5, 6.0, 8.0, 16.0):
            assert law.optimum(flops=best["flops"], bits=bits)["loss"] > best["loss"]
    assert high.outside
    # Runs with activations of 3 bits diverged, with weights of 3 bits they did not (appendix L).
    assert law.effective_share(16, 3, 16) == 0
    assert 0.5 < law.effective_share(3, 16, 16) < 0.6
    with pytest.raises(UserError, match=r"no number for activation_bits = 3; it was fitted from 4 to 16"):
        law.loss(params=1e8, tokens=1e10, activation_bits=3)
    # The more sensitive: activations, weights, cache, of what has room for 6 bits.
    assert law.effective_share(16, 6, 16) < law.effective_share(6, 16, 16) < law.effective_share(16, 16, 6)


def test_bits_cut_after_training_cost_more_the_longer_it_was():
    law = LAWS["precision"]
    full = law.loss(params=1e8, tokens=[1e9, 1e10])
    cut = law.loss(params=1e8, tokens=[1e9, 1e10], post_bits=4) - full
    assert cut[1] / cut[0] == pytest.approx(10**0.5068)
    by_size = law.loss(params=[1e8, 2e8], tokens=1e10, post_bits=4) - law.loss(params=[1e8, 2e8], tokens=1e10)
    assert by_size[0] / by_size[1] == pytest.approx(2**0.3439, rel=1e-2)
    most = law.most_useful_tokens(30e6, 3)
    here, less, more = (law.loss(params=30e6, tokens=most * x, post_bits=3) for x in (1.0, 0.8, 1.25))
    assert here < less
    assert here < more


def test_the_precision_law_is_found_from_runs():
    law = Precision()
    random = np.random.default_rng(5)
    runs = {
        "params": random.choice([30e6, 60e6, 110e6, 220e6], 200),
        "tokens": random.choice([1.5e9, 3e9, 6e9, 13e9, 26e9], 200),
        "weight_bits": random.choice([3, 4, 6, 8, 16], 200),
        "activation_bits": random.choice([4, 6, 8, 16], 200),
        "cache_bits": random.choice([4, 6, 8, 16], 200),
    }
    constants = law.published()
    fixed = {name: constants[name].value for name in ("C_T", "gamma_D", "gamma_N", "gamma_post", "b")}
    noisy = law.loss(**runs) * np.exp(random.normal(0, 0.003, 200))
    fit = Precision.fit(runs | {"loss": noisy}, fixed=fixed, delta=None, samples=12, level=0.98)
    np.testing.assert_allclose(fit.law.loss(**runs), law.loss(**runs), rtol=5e-3)
    for name in ("gamma_w", "gamma_a"):
        low, high = fit.intervals[name]
        assert low - 0.4 * (high - low) <= getattr(law, name) <= high + 0.4 * (high - low)


def test_four_bit_training_costs_what_the_paper_says_of_it():
    whole, weights, activations, mixed = quantised_training.LAWS
    size = {"params": 594e6, "tokens": 100e9}

    def added(law, group_size, **other):
        return law.added_loss(**{**size, **other}, group_size=group_size)

    # Section 4.3: from 74M to 594M, and from 10B to 100B tokens, on average over what else varies.
    assert 1 - added(weights, 128) / added(weights, 128, params=74e6) == pytest.approx(0.51, abs=0.03)
    assert 1 - added(activations, 128) / added(activations, 128, params=74e6) == pytest.approx(0.34, abs=0.03)
    assert added(weights, 128) / added(weights, 128, tokens=10e9) - 1 == pytest.approx(0.43, abs=0.03)
    assert added(activations, 128) / added(activations, 128, tokens=10e9) - 1 == pytest.approx(0.12, abs=0.05)
    # Figure 6: the parts sum to about the whole. Figure 9: 20.5 % and 42.9 % saved by 8 bits for one input.
    assert added(whole, 128) == pytest.approx(0.906 * (added(weights, 128) + added(activations, 128)), rel=0.06)
    assert 1 - added(mixed, 32) / added(whole, 32) == pytest.approx(0.205, abs=0.06)
    assert 1 - added(mixed, 256) / added(whole, 256) == pytest.approx(0.429, abs=0.06)
    assert added(whole, 1) == 0
    assert whole.loss(**size) == pytest.approx(whole.loss(**size, group_size=1) + added(whole, 128))
    # Section 4.3: activations cost more than weights, the less so the longer a model is trained.
    ratios = [added(activations, 32, tokens=d * 594e6) / added(weights, 32, tokens=d * 594e6) for d in (100, 1000)]
    assert ratios[0] > ratios[1] > 1


@settings(max_examples=10, deadline=None)
@given(st.floats(0.0, 0.6), st.integers(0, 50))
def test_runs_with_frozen_parameters_say_what_those_are_worth(weight, seed):
    dense = Besiroglu()
    random = np.random.default_rng(seed)
    trained, frozen = np.exp(random.uniform(*np.log([1e6, 1e9]), (2, 30)))
    tokens = np.full(30, 2e10)
    clean = dense.loss(params=trained + weight * frozen, tokens=tokens)
    sizes = trainable.worth(dense, clean, tokens)
    np.testing.assert_allclose(sizes, trained + weight * frozen, rtol=1e-6)
    noisy = sizes * np.exp(random.normal(0, 0.05, 30))
    data = {"trainable_params": trained, "frozen_params": frozen, "effective_params": noisy}
    fit = trainable.TrainableParams.fit(data, samples=40, level=0.98, delta=None)
    low, high = fit.intervals["weight"]
    assert low - 0.02 - 0.3 * (high - low) <= weight <= high + 0.02 + 0.3 * (high - low)


def test_by_the_paper_frozen_parameters_are_worth_nothing():
    law = LAWS["trainable_params"]
    assert law.predict(trainable_params=1e8, frozen_params=1e9) == 1e8
    assert law.predict(trainable_params=1e8) == 1e8
    assert law.confidence == "low"


def test_growth_starts_about_where_its_valleys_lie_and_counts_the_small_model():
    law = LAWS["growth_timing"]
    # log10 d = 0.88·log10 N + 163.27/log10 C - 5.74, by hand for 3B parameters and 1e21 FLOPs.
    by_hand = 0.88 * math.log10(3e9) + 163.27 / 21 - 5.74
    assert law.predict(params=3e9, flops=1e21) == pytest.approx(10**by_hand)
    # Valleys of figure 8 lie between 5B and 50B tokens.
    for params, flops in ((410e6, 2e20), (1.1e9, 5e20), (3e9, 1e21)):
        assert 4e9 < law.predict(params=params, flops=flops) < 5e10
    best = law.schedule(params=1.1e9, flops=5e20)
    assert best["small_params"] == pytest.approx(1.1e9 / 4)
    spent = 6 * best["small_params"] * best["growth_tokens"] + 6 * 1.1e9 * best.tokens
    assert spent == pytest.approx(5e20)
    assert best.outside == ()
    assert law.schedule(params=7e9, flops=1e22).outside
    with pytest.raises(UserError, match="spent before a model of"):
        law.schedule(params=1e11, flops=1e19)
    assert round(growth.speedup(300e9, 194e9), 3) == 0.546


def test_growth_timing_is_found_from_valleys():
    random = np.random.default_rng(6)
    law = growth.GrowthTiming()
    params = random.choice([410e6, 1.1e9, 3e9], 40)
    flops = np.exp(random.uniform(*np.log([8e19, 1.2e21]), 40))
    found = law.predict(params=params, flops=flops) * np.exp(random.normal(0, 0.05, 40))
    fit = growth.GrowthTiming.fit(
        {"params": params, "flops": flops, "growth_tokens": found}, samples=40, level=0.98, delta=None
    )
    low, high = fit.intervals["a"]
    assert low - 0.02 < law.a < high + 0.02
