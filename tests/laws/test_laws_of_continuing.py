"""Mixtures, continued training, forgetting: published rows, solvers against other means, and fits."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from t5x_scale.core.errors import UserError
from t5x_scale.laws import LAWS, cmr, dcpt, entropy_mixture, forgetting, mixed_modal, quality, replay, transfer
from t5x_scale.laws.bimix import BiMix, best_shares


def noisy(values, noise, seed=0):
    return values * np.exp(np.random.default_rng(seed).normal(0, noise, np.shape(values)))


# Table 5 and figure 3 of the critical mixture ratio: percent of domain at 20B tokens.
@pytest.mark.parametrize(
    ("name", "percent"), [("cmr_460m", 29.8), ("cmr_940m", 34.9), ("cmr_1.6b", 41.4), ("cmr_3.1b", 47.8)]
)
def test_the_critical_ratio_at_20b_tokens_comes_out(name, percent):
    law = LAWS[name]
    assert round(100 * law.predict(tokens=20e9), 1) == percent
    assert law.outside(tokens=20e9, params=law.model_params) == []
    assert law.outside(tokens=50e9) == ["tokens = 5e+10 is outside 2e+08 to 2e+10"]


def test_the_nearest_model_speaks_for_a_size_and_says_that_it_is_another():
    assert cmr.nearest(405e6).name == "cmr_460m"
    assert cmr.nearest(1.2e9).name == "cmr_940m"
    assert cmr.nearest(70e9).name == "cmr_3.1b"
    assert cmr.nearest(70e9).outside(params=70e9)


def test_the_loss_at_a_quarter_is_predicted_from_larger_shares_as_published():
    # Table 2, by transcription: losses at shares 1, 3/4, 1/2, 1/3; measured and predicted at 1/4.
    rows = {
        "460M": ([1.4628, 1.4844, 1.5122, 1.5387], 1.5561, 1.5566),
        "940M": ([1.3723, 1.3910, 1.4155, 1.4385], 1.4538, 1.4546),
        "1.6B": ([1.3242, 1.3416, 1.3643, 1.3854], 1.3994, 1.3999),
        "3.1B": ([1.2585, 1.2750, 1.2965, 1.3170], 1.3305, 1.3303),
    }
    for losses, measured, predicted in rows.values():
        law = cmr.RatioLoss.fit({"ratio": [1.0, 0.75, 0.5, 1 / 3], "loss": losses}, delta=None).law
        assert law.loss(ratio=0.25) == pytest.approx(predicted, abs=1.1e-3)
        assert law.loss(ratio=0.25) == pytest.approx(measured, rel=1e-3)


def test_the_worked_row_of_dcpt_gives_the_published_share():
    row = dcpt.PUBLISHED_ROW
    assert row.cap == pytest.approx(1.03 * row.base_general, abs=1e-4)
    # Of the measured shares the largest one below the cap, and, on straight lines, a little more.
    assert max(r for r, g in zip(row.shares, row.general, strict=True) if g <= row.cap) == row.chosen
    assert dcpt.measured_share_under_cap(row.shares, row.general, row.cap) == pytest.approx(0.9245, abs=1e-4)
    shares = 1 - np.array(row.shares)
    law = dcpt.ShareLoss.fit({"ratio": shares, "loss": row.general}, delta=None).law
    assert np.abs(law.loss(ratio=shares) - row.general).max() < 0.006
    found = dcpt.domain_share_under_cap(lambda ratio: law.loss(ratio=ratio), row.cap)
    assert round(found, 3) == row.chosen
    assert law.loss(ratio=1 - found) == pytest.approx(row.cap)


GENERAL = dcpt.Dcpt(E=1.9, A=300.0, alpha=0.33, B=40.0, eta=0.3, beta=0.32, C=0.08, epsilon=0.03, gamma=0.6)


def test_the_share_under_a_cap_is_the_largest_one():
    cap = 2.4
    best = GENERAL.optimum(params=1.8e9, tokens=1e10, cap=cap)
    share = best["domain_ratio"]
    assert best["loss"] == pytest.approx(cap, abs=1e-9)
    assert best["ratio"] == pytest.approx(1 - share)
    grid = np.linspace(share + 1e-4, 1.0, 50)
    assert np.all(GENERAL.loss(params=1.8e9, tokens=1e10, ratio=1 - grid) > cap)
    assert GENERAL.optimum(params=1.8e9, tokens=1e10, cap=9.0)["domain_ratio"] == 1.0
    assert GENERAL.optimum(params=70e9, tokens=1e10, cap=cap).outside
    with pytest.raises(UserError, match=r"no mixture has a general loss of 1\.5"):
        GENERAL.optimum(params=1.8e9, tokens=1e10, cap=1.5)
    with pytest.raises(UserError, match="was not measured"):
        dcpt.measured_share_under_cap([0.5, 1.0], [3.0, 4.0], 2.0)
    assert dcpt.measured_share_under_cap([1.0, 0.5], [4.0, 3.0], 5.0) == 1.0


def test_dcpt_and_its_cross_domain_form_predict_mixtures_kept_away_from_their_fits():
    random = np.random.default_rng(1)
    runs = {
        "params": random.choice([0.5e9, 1.8e9, 4e9], 150),
        "tokens": np.exp(random.uniform(*np.log([5e8, 2e10]), 150)),
        "ratio": random.choice([0.0, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1.0], 150),
    }
    fit = dcpt.Dcpt.fit(runs | {"loss": noisy(GENERAL.loss(**runs), 0.002)}, held_out=0.3, delta=None)
    assert fit.held_out_error < 0.0035
    apart = dcpt.CrossDomainDcpt(**dataclasses.asdict(GENERAL), F=0.5, mu=0.7)
    runs["learnability"] = random.choice([0.4, 0.8, 1.3, 2.0], 150)
    fit = dcpt.CrossDomainDcpt.fit(runs | {"loss": noisy(apart.loss(**runs), 0.002)}, held_out=0.3, delta=None)
    assert fit.held_out_error < 0.0035
    known = {"params": 1.8e9, "tokens": 1e10, "learnability": 1.0}
    share = apart.optimum(**known, cap=2.9)["domain_ratio"]
    assert apart.loss(params=1.8e9, tokens=1e10, ratio=1 - share, learnability=1.0) <= 2.9 + 1e-9


def test_bimix_predicts_a_mixture_that_it_was_not_fitted_to():
    law = BiMix(A=1.0, alpha=0.12, B=8.0, beta=0.35, C=2.1)
    shares, steps = (a.ravel() for a in np.meshgrid([0.1, 0.2, 0.3, 0.4, 0.5, 0.7], np.geomspace(1e3, 2e5, 12)))
    runs = {"ratio": shares, "steps": steps, "loss": noisy(law.loss(ratio=shares, steps=steps), 0.003)}
    fit = BiMix.fit(runs, held_out=shares == 0.4, samples=20, level=0.98)
    assert fit.held_out_error < 0.004
    assert fit.law.A == 1.0
    for name in ("alpha", "beta", "C"):
        low, high = fit.intervals[name]
        assert low - 0.3 * (high - low) <= getattr(law, name) <= high + 0.3 * (high - low)
    # A straight line in the logarithms of loss and share.
    slopes = np.diff(np.log(fit.law.loss(ratio=[0.1, 0.2, 0.4], steps=1e5)))
    assert slopes[0] == pytest.approx(slopes[1])


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.02, 0.5), st.floats(1.0, 4.0), st.floats(0.2, 3.0)), min_size=1, max_size=4),
)
def test_the_best_shares_are_those_a_general_solver_finds(domains):
    laws = [BiMix(A=1.0, alpha=alpha, B=3.0, beta=0.3, C=floor) for alpha, floor, _ in domains]
    weights = [weight for _, _, weight in domains]
    found = best_shares(laws, steps=1e4, weights=weights)
    assert found.sum() == pytest.approx(1.0)

    def total(shares):
        return sum(w * law.loss(ratio=r, steps=1e4) for w, law, r in zip(weights, laws, shares, strict=True))

    start = np.full(len(laws), 1 / len(laws))
    sum_to_one = {"type": "eq", "fun": lambda r: r.sum() - 1}
    other = optimize.minimize(total, start, bounds=[(1e-4, 1)] * len(laws), constraints=[sum_to_one], tol=1e-10)
    assert total(found) <= other.fun + 1e-7
    with pytest.raises(UserError, match="weights for"):
        best_shares(laws, 1e4, [1.0] * (len(laws) + 1))


def test_entropies_are_those_of_the_counts():
    random = np.random.default_rng(0)
    chain = [random.integers(0, 7, size) for size in (5000, 3000, 1)]
    joint = np.zeros((7, 7))
    for document in chain:
        np.add.at(joint, (document[:-1], document[1:]), 1)
    joint /= joint.sum()
    given = joint.sum(1)
    expected = -np.sum(joint * np.log(joint / given[:, None]))
    assert entropy_mixture.conditional_entropy(chain) == pytest.approx(expected)
    assert entropy_mixture.joint_entropy(chain) == pytest.approx(-np.sum(joint * np.log(joint)))
    assert entropy_mixture.token_entropy(chain) == pytest.approx(np.log(7), abs=2e-3)
    # A cycle is certain of its next token; no pair spans two documents.
    cycle = np.arange(900) % 9
    assert entropy_mixture.conditional_entropy([cycle]) == pytest.approx(0.0, abs=1e-12)
    assert entropy_mixture.conditional_entropy([cycle, cycle[3:], cycle[5:]]) == pytest.approx(0.0, abs=1e-12)
    # Ids as large as vocabularies get.
    assert entropy_mixture.joint_entropy([np.array([256_000, 1, 256_000, 1])]) == pytest.approx(
        entropy_mixture.entropy([2, 1])
    )
    assert entropy_mixture.von_neumann_entropy(np.eye(5)) == pytest.approx(np.log(5))
    assert entropy_mixture.von_neumann_entropy(np.ones((5, 3))) == pytest.approx(0.0, abs=1e-12)


def test_shares_by_entropy_are_a_softmax_and_bad_documents_are_said():
    shares = entropy_mixture.entropy_shares({"web": 4.0, "code": 3.0, "books": 1000.0 - 995.0})
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["web"] / shares["code"] == pytest.approx(np.e)
    for documents in ([], [np.array([3])], [np.array([-1, 2, 3])]):
        with pytest.raises(UserError):
            entropy_mixture.conditional_entropy(documents)
    with pytest.raises(UserError):
        entropy_mixture.entropy_shares({})
    with pytest.raises(UserError):
        entropy_mixture.entropy([])


@pytest.mark.parametrize("name", replay.SHIFTS)
def test_the_laws_through_ibrahims_rows_meet_them_and_are_marked_as_ours(name):
    shift = replay.SHIFTS[name]
    ratio, old, new = np.array(shift.scenario.rows).T
    np.testing.assert_allclose(shift.old.loss(ratio=ratio), old, atol=0.01)
    np.testing.assert_allclose(shift.new.loss(ratio=ratio), new, atol=0.006)
    for law, observed in ((shift.old, old), (shift.new, new)):
        again = type(law).fit({"ratio": ratio, "loss": observed}, delta=None).law
        np.testing.assert_allclose(again.loss(ratio=ratio), law.loss(ratio=ratio), rtol=1e-4)
        assert law.confidence == "low"
        assert "ours" in law.source
    # A few per cent of replay remove most of the forgetting at little cost.
    assert shift.forgetting(0.05) < 0.45 * shift.forgetting(0.0)
    assert shift.cost(0.05) < 0.02
    assert shift.old.outside(ratio=0.7)
    enough = shift.ratio_for(0.1)
    assert shift.forgetting(enough) == pytest.approx(0.1)
    assert 0 < enough < 0.5
    assert shift.ratio_for(9.0) == 0.0


def test_forgetting_rises_as_the_fine_tuning_loss_falls_and_fits_say_how():
    truth = forgetting.FineTuningLoss(c=1.2, a=3e4, alpha=0.35, b=40.0, beta=0.6, rho=0.9)
    lost = forgetting.Forgetting(c=1.6, a=3e4, alpha=0.35, b=40.0, beta=0.6, rho=0.9)
    trainable, steps = (a.ravel() for a in np.meshgrid(np.geomspace(1e5, 1e8, 8), np.geomspace(50, 5000, 8)))
    runs = {"trainable_params": trainable, "steps": steps}
    loss, forgotten = truth.loss(**runs), lost.predict(**runs)
    fit = forgetting.FineTuningLoss.fit(runs | {"loss": noisy(loss, 0.002)}, held_out=0.2, delta=None)
    assert fit.held_out_error < 0.004
    measured = forgotten + np.random.default_rng(2).normal(0, 0.003, len(steps))
    fit = forgetting.Forgetting.fit(runs | {"forgetting": measured}, held_out=0.2, delta=None)
    assert fit.held_out_error < 0.006
    line = forgetting.ForgettingLine.fit({"fine_tuning_loss": loss, "forgetting": measured}, samples=40, delta=None)
    assert line.law.slope == pytest.approx(1.0, abs=0.01)
    low, high = line.intervals["slope"]
    assert low - 0.005 < 1.0 < high + 0.005
    assert line.law.predict(fine_tuning_loss=line.law.loss_for(0.4)) == pytest.approx(0.4)
    with pytest.raises(UserError, match="predicts forgetting"):
        lost.loss(**runs)


def test_transfer_laws_are_fitted_and_data_that_are_not_aligned_are_told():
    tokens = np.geomspace(1e8, 3e11, 14)
    bleu = transfer.TransferBleu(log_A=-2.0, alpha=0.32, beta=1.7)
    fit = transfer.TransferBleu.fit({"tokens": tokens, "bleu": noisy(bleu.predict(tokens=tokens), 0.003)}, delta=None)
    np.testing.assert_allclose(fit.law.predict(tokens=tokens), bleu.predict(tokens=tokens), rtol=0.006)
    loss = transfer.TransferLoss(E=0.9, A=60.0, alpha=0.25)
    fit = transfer.TransferLoss.fit({"tokens": tokens, "loss": noisy(loss.loss(tokens=tokens), 0.002)}, samples=20)
    low, high = fit.intervals["alpha"]
    assert low - 0.02 < 0.25 < high + 0.02
    assert transfer.is_monotone(tokens, bleu.predict(tokens=tokens))
    assert transfer.is_monotone([3e9, 1e9, 2e9], [30.0, 10.0, 20.0])
    assert not transfer.is_monotone([1e9, 2e9, 3e9], [20.0, 25.0, 22.0])
    assert transfer.is_monotone([1e9, 2e9, 3e9], [20.0, 25.0, 24.5], tolerance=1.0)
    with pytest.raises(UserError, match="one score for each"):
        transfer.is_monotone([1e9], [1.0, 2.0])


def test_modalities_alone_are_as_published_and_pairs_cross_from_competition_to_synergy():
    text = LAWS["modal_text"]
    assert (text.A, text.B, text.E, text.alpha, text.beta) == (492.51, 1987.40, 2.42, 0.18, 0.22)
    assert text.loss(params=1e9, tokens=1e10) == pytest.approx(2.42 + 492.51 / 1e9**0.18 + 1987.40 / 1e10**0.22)
    speech = LAWS["modal_speech"]
    pair = mixed_modal.MixedModalPair(C=0.12, A=300.0, alpha=0.4, B=200.0, beta=0.35)
    known = {"tokens": 45e9, "other_tokens": 45e9}
    size = pair.crossing_params(**known)
    assert pair.synergy(size / 3, *known.values()) < 0 < pair.synergy(size * 3, *known.values())
    alone = (speech.loss(params=size, tokens=45e9) + text.loss(params=size, tokens=45e9)) / 2
    assert mixed_modal.alone(speech, text, size, *known.values()) == pytest.approx(alone)
    assert pair.loss(params=size, **known, alone_loss=alone) == pytest.approx(alone)
    with pytest.raises(UserError):
        dataclasses.replace(pair, C=1e-9).crossing_params(**known)
    random = np.random.default_rng(3)
    runs = {
        name: np.exp(random.uniform(*np.log(ends), 60))
        for name, ends in {"params": (8e6, 3e10), "tokens": (5e9, 1e11), "other_tokens": (5e9, 1e11)}.items()
    }
    runs["alone_loss"] = mixed_modal.alone(speech, text, **runs)
    fit = mixed_modal.MixedModalPair.fit(runs | {"loss": noisy(pair.loss(**runs), 0.001)}, delta=None)
    np.testing.assert_allclose(fit.law.loss(**runs), pair.loss(**runs), rtol=2e-3)


def test_what_quality_is_worth_is_found_from_runs():
    truth = quality.DataQuality(E=1.7, A=400.0, alpha=0.34, B=410.0, beta=0.28, of_diversity=2.0, of_syntheticity=-1.5)
    random = np.random.default_rng(4)
    runs = {
        "params": np.exp(random.uniform(*np.log([25e6, 1.5e9]), 200)),
        "tokens": np.exp(random.uniform(*np.log([1e9, 5e10]), 200)),
        "diversity": random.uniform(0.2, 0.6, 200),
        "syntheticity": random.uniform(0.0, 0.4, 200),
    }
    fit = quality.DataQuality.fit(runs | {"loss": noisy(truth.loss(**runs), 0.002)}, samples=16, level=0.98, delta=None)
    for name in ("of_diversity", "of_syntheticity"):
        low, high = fit.intervals[name]
        assert low - 0.3 * (high - low) < getattr(truth, name) < high + 0.3 * (high - low)
    assert truth.effective_tokens(1e9, 0.0, 0.0) == 1e9
    assert quality.text_diversity(b"the same " * 400) < 0.1 < quality.text_diversity(random.bytes(4000))
    assert quality.text_syntheticity(0.0) == 1.0
    with pytest.raises(UserError, match="fit it to runs"):
        LAWS["data_quality"].loss(params=1e9, tokens=1e10, diversity=0.3, syntheticity=0.1)
