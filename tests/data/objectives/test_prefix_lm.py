import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives import Piece, PrefixLm, RowKeys


def make(objective, rows, length):
    raw = np.arange(rows * (length + 1), dtype=np.int32).reshape(rows, length + 1)
    return objective(raw, RowKeys(1, np.arange(rows)), length), raw


@given(st.integers(1, 4), st.integers(2, 24))
def test_no_learnt_position_sees_its_own_target(visible, rows, length):
    fields, raw = make(PrefixLm(), rows, length)
    np.testing.assert_array_equal(fields["decoder_input_tokens"], raw[:, :-1])
    np.testing.assert_array_equal(fields["decoder_target_tokens"], raw[:, 1:])
    for row in range(rows):
        mask = visible(fields, row)
        learnt = np.flatnonzero(fields["decoder_loss_weights"][row])
        first = learnt[0]
        prefix = fields["decoder_causal_attention"][row]
        assert learnt.tolist() == list(range(first, length))
        # One position more in the mask than predictions without loss.
        assert prefix.sum() == first + 1
        assert prefix[: first + 1].all()
        # All of the prefix sees all of the prefix, the position that predicts the first target too.
        assert mask[: first + 1, : first + 1].all()
        for position in learnt:
            fed = fields["decoder_input_tokens"][row][mask[position]]
            assert raw[row, position + 1] not in fed
            assert set(raw[row, : position + 1]) == set(fed)


def test_a_uniform_split_takes_every_place_equally_often():
    fields, _ = make(PrefixLm(), 20_000, 9)
    loss_free = (fields["decoder_loss_weights"] == 0).sum(axis=1)
    counts = np.bincount(loss_free, minlength=10)
    assert counts[0] == counts[9] == 0
    np.testing.assert_allclose(counts[1:9], 20_000 / 8, rtol=0.08)


def test_fixed_split_and_fewest_targets():
    fields, _ = make(PrefixLm(split=0.25), 3, 16)
    assert (fields["decoder_loss_weights"] == 0).sum(axis=1).tolist() == [4, 4, 4]
    fields, _ = make(PrefixLm(min_targets=10), 200, 16)
    assert (fields["decoder_loss_weights"] == 1).sum(axis=1).min() == 10
    fields, _ = make(PrefixLm(loss_on_prefix=True), 3, 16)
    assert fields["decoder_loss_weights"].min() == 1
    assert fields["decoder_causal_attention"].sum() > 3


@given(st.integers(1, 20), st.integers(1, 8), st.sampled_from(["uniform", 0.5, 0.01, 0.99]))
def test_documents_of_any_length_have_a_target(length, min_targets, split):
    objective = PrefixLm(split=split, min_targets=min_targets)
    piece = Piece(np.arange(10, 10 + length, dtype=np.int32), previous=1)
    example = objective.example(piece, 0, np.random.Generator(np.random.Philox(7)))
    assert example.inputs.tolist() == [1, *piece.tokens[:-1]]
    assert example.targets.tolist() == piece.tokens.tolist()
    loss_free = int((example.weights == 0).sum())
    assert example.prefix == loss_free + 1 <= length
    assert loss_free >= 1 or length == 1
    if length > min_targets:
        assert length - loss_free >= min_targets
    assert objective.packed_length(np.array([length]), np.array([0], np.uint64)).tolist() == [length]


def test_statistics_are_what_rows_hold():
    for objective in (PrefixLm(), PrefixLm(split=0.3, min_targets=4), PrefixLm(loss_on_prefix=True)):
        fields, _ = make(objective, 4000, 32)
        assert fields["decoder_loss_weights"].mean() == pytest.approx(objective.statistics(32)["targets"], abs=0.02)


@pytest.mark.parametrize(
    "options", [{"split": "half"}, {"split": None}, {"split": 1.0}, {"split": True}, {"min_targets": 0}]
)
def test_bad_settings(options):
    with pytest.raises(UserError, match=next(iter(options))):
        PrefixLm(**options)


def test_rows_too_short():
    with pytest.raises(UserError, match="needs rows of more than 4"):
        PrefixLm(min_targets=4).raw_length(4)
    with pytest.raises(ValueError, match="needs windows of 9 tokens"):
        PrefixLm()(np.zeros((2, 8), np.int32), RowKeys(0, np.arange(2)), 8)
