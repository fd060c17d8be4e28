import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives import MaskedDiffusion, Piece, RowKeys


def noise(objective, rows, length, seed=0, first_row=0):
    raw = np.random.default_rng(seed).integers(0, 264, (rows, objective.raw_length(length)), dtype=np.int32)
    return raw, objective(raw, RowKeys(seed, first_row + np.arange(rows)), length)


@given(st.integers(1, 40), st.booleans(), st.booleans())
def test_masked_tokens_alone_are_learnt(vocabulary, length, shifted, stratified):
    objective = MaskedDiffusion(shifted=shifted, stratified=stratified).with_vocabulary(vocabulary)
    mask = vocabulary.sentinel_id(vocabulary.num_sentinels - 1)
    raw, fields = noise(objective, 5, length)
    weights, inputs = fields["decoder_loss_weights"], fields["decoder_input_tokens"]
    assert fields["decoder_causal_attention"].min() == 1
    if shifted:
        np.testing.assert_array_equal(fields["decoder_target_tokens"], raw[:, 1:])
        np.testing.assert_array_equal(inputs[:, 0], raw[:, 0])
        is_masked = weights[:, :-1] > 0
        np.testing.assert_array_equal(inputs[:, 1:], np.where(is_masked, mask, raw[:, 1:-1]))
    else:
        np.testing.assert_array_equal(fields["decoder_target_tokens"], raw)
        np.testing.assert_array_equal(inputs, np.where(weights > 0, mask, raw))
    for row in weights:
        # All weights of a row are 1 / t, exactly the same number.
        assert len(set(row[row > 0])) <= 1
        assert row.max() <= np.float32(1e3)


def test_rates_are_uniform_and_weights_sum_to_the_length(vocabulary):
    objective = MaskedDiffusion().with_vocabulary(vocabulary)
    _, fields = noise(objective, 4000, 200)
    weights = fields["decoder_loss_weights"]
    masked = (weights > 0).mean(axis=1)
    np.testing.assert_allclose(np.histogram(masked, 4, (0, 1))[0] / 4000, 0.25, atol=0.03)
    seen = weights.max(axis=1)
    known = seen > 0
    # The share that is masked is the rate, within its sampling error.
    np.testing.assert_allclose(masked[known], 1 / seen[known], atol=0.17)
    assert np.abs(masked[known] - 1 / seen[known]).mean() < 0.03
    assert weights.sum(axis=1).mean() == pytest.approx(200, rel=0.03)
    assert objective.statistics(200)["targets"] == pytest.approx(masked.mean(), abs=0.02)


def test_stratified_rates_are_even_over_any_neighbouring_rows(vocabulary):
    objective = MaskedDiffusion(stratified=True).with_vocabulary(vocabulary)

    def rates(rows, seed):
        words = objective(np.zeros((len(rows), 400), np.int32), RowKeys(seed, rows), 400)["decoder_loss_weights"].max(
            axis=1
        )
        return np.sort(1 / words[words > 0])

    for first in (0, 12345, 2**45):
        found = rates(first + np.arange(64), 1)
        assert np.diff([0, *found, 1]).max() < 0.05
    assert not np.array_equal(rates(np.arange(64), 1), rates(np.arange(64), 2))
    np.testing.assert_array_equal(rates(np.arange(8), 1), np.sort(rates(np.arange(8)[::-1], 1)))


@given(st.integers(1, 30), st.booleans(), st.integers(0, 29))
def test_documents(vocabulary, length, shifted, target_start):
    objective = MaskedDiffusion(shifted=shifted).with_vocabulary(vocabulary)
    piece = Piece(np.arange(10, 10 + length, dtype=np.int32), previous=1, target_start=min(target_start, length - 1))
    example = objective.example(piece, 0, np.random.Generator(np.random.Philox(1)))
    assert len(example.inputs) == len(example.weights) == example.prefix == length
    assert example.targets.tolist() == piece.tokens.tolist()
    # Of a supervised document the inputs stay as they are.
    assert example.weights[: piece.target_start].sum() == 0
    untouched = [1, *piece.tokens] if shifted else piece.tokens
    assert example.inputs[: piece.target_start].tolist() == list(untouched[: piece.target_start])


def test_the_mask_is_named_or_the_last_sentinel(make_vocabulary):
    def mask_of(vocabulary, **options):
        objective = MaskedDiffusion(min_rate=0.999, **options).with_vocabulary(vocabulary)
        return np.bincount(noise(objective, 4, 100)[1]["decoder_input_tokens"].ravel()).argmax()

    named = make_vocabulary(more=["[MASK]", "<gap>"])
    assert mask_of(named) == named.control_id("[MASK]")
    assert mask_of(named, mask_token="<gap>") == named.control_id("<gap>")
    assert mask_of(make_vocabulary(sentinels=4)) == make_vocabulary(sentinels=4).sentinel_id(3)
    with pytest.raises(UserError, match="no control token <gap>"):
        mask_of(make_vocabulary(), mask_token="<gap>")
    with pytest.raises(UserError, match="mask_token"):
        mask_of(make_vocabulary(sentinels=0))


def test_bad_rate():
    with pytest.raises(UserError, match="min_rate"):
        MaskedDiffusion(min_rate=0.0)
