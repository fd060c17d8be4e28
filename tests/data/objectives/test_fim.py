import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives import FillInTheMiddle, Piece, RowKeys

NAMES = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


def undo(sequence, pre, suf, mid):
    """(order, the text as it was, ends included): from the definitions of the two orders."""
    sequence = sequence.tolist()
    assert sequence[0] == pre
    start, middle = sequence.index(suf), sequence.index(mid)
    suffix, rest = sequence[start + 1 : middle], sequence[middle + 1 :]
    if start == 1:
        return "SPM or PSM with an empty prefix", rest, suffix
    return "PSM", sequence[1:start] + rest, suffix


@pytest.fixture
def bound(make_vocabulary):
    vocabulary = make_vocabulary(more=NAMES)
    return vocabulary, FillInTheMiddle(rate=1.0).with_vocabulary(vocabulary)


@given(st.integers(7, 60), st.integers(0, 2**50), st.floats(0, 1))
def test_rearranged_rows_hold_their_text_but_four_tokens(make_vocabulary, length, row, spm_rate):
    vocabulary = make_vocabulary(more=NAMES)
    pre, suf, mid = (vocabulary.control_id(name) for name in NAMES)
    objective = FillInTheMiddle(rate=1.0, spm_rate=spm_rate).with_vocabulary(vocabulary)
    raw = np.arange(10, 11 + length, dtype=np.int32)[None]
    fields = objective(raw, RowKeys(0, np.array([row])), length)
    targets = fields["decoder_target_tokens"][0]
    assert fields["decoder_input_tokens"][0, 1:].tolist() == targets[:-1].tolist()
    assert targets[-1] == vocabulary.eod_id
    _, front, suffix = undo(targets[:-1], pre, suf, mid)
    first = 4 if raw[0, 0] != fields["decoder_input_tokens"][0, 0] else 0
    assert front + suffix == raw[0, first + 1 : first + 1 + length - 4].tolist()
    assert fields["decoder_input_tokens"][0, 0] == raw[0, first]
    assert fields["decoder_loss_weights"].min() == 1


def test_both_orders_and_their_rates(bound, make_vocabulary):
    vocabulary = bound[0]
    objective = FillInTheMiddle(rate=0.4, spm_rate=0.25).with_vocabulary(vocabulary)
    raw = np.tile(np.arange(10, 111, dtype=np.int32), (5000, 1))
    targets = objective(raw, RowKeys(0, np.arange(5000)), 100)["decoder_target_tokens"]
    pre, suf, _ = (vocabulary.control_id(name) for name in NAMES)
    rearranged = targets[:, 0] == pre
    np.testing.assert_array_equal(targets[~rearranged], raw[~rearranged, 1:])
    assert rearranged.mean() == pytest.approx(0.4, abs=0.02)
    # An empty prefix in PSM order looks the same: one cut of two at the very front, 2 / 98.
    assert (targets[rearranged, 1] == suf).mean() == pytest.approx(0.25 + 0.75 * 2 / 97, abs=0.03)
    assert objective.statistics(100)["raw_tokens_used"] == 1 - 0.4 * 4 / 100


@given(st.integers(1, 30), st.booleans(), st.integers(0, 2**64 - 1))
def test_documents_keep_all_their_tokens(make_vocabulary, length, ends, choice):
    vocabulary = make_vocabulary(more=NAMES)
    pre, suf, mid = (vocabulary.control_id(name) for name in NAMES)
    objective = FillInTheMiddle(rate=0.5).with_vocabulary(vocabulary)
    tokens = np.arange(10, 10 + length, dtype=np.int32)
    if ends:
        tokens[-1] = vocabulary.eod_id
    example = objective.example(Piece(tokens, previous=1), choice, np.random.Generator(np.random.Philox(choice % 99)))
    assert len(example.targets) == objective.packed_length(np.array([length]), np.array([choice], np.uint64))[0]
    assert example.inputs.tolist() == [1, *example.targets[:-1].tolist()]
    assert example.prefix == 0
    if choice >= 2**63 or length < 3:
        assert example.targets.tolist() == tokens.tolist()
        return
    body = example.targets[:-1] if ends else example.targets
    assert not ends or example.targets[-1] == vocabulary.eod_id
    _, front, suffix = undo(body, pre, suf, mid)
    assert front + suffix == tokens[: length - ends].tolist()


def test_tokens_by_name_or_the_last_sentinels(make_vocabulary):
    plain = make_vocabulary(sentinels=10)
    assert FillInTheMiddle().with_vocabulary(plain)._ids() == tuple(plain.sentinel_id(i) for i in (7, 8, 9))
    named = make_vocabulary(more=["<a>", "<b>", "<c>"])
    objective = FillInTheMiddle(tokens=["<a>", "<b>", "<c>"]).with_vocabulary(named)
    assert objective._ids() == tuple(named.control_id(name) for name in ("<a>", "<b>", "<c>"))
    with pytest.raises(UserError, match="no control token <a>"):
        FillInTheMiddle(tokens=["<a>", "<b>", "<c>"]).with_vocabulary(plain)
    with pytest.raises(UserError, match="three sentinels"):
        FillInTheMiddle().with_vocabulary(make_vocabulary(sentinels=2))


def test_bad_settings(bound):
    with pytest.raises(UserError, match="spm_rate"):
        FillInTheMiddle(spm_rate=1.1)
    with pytest.raises(UserError, match="three tokens"):
        FillInTheMiddle(tokens=["<a>"])
    with pytest.raises(UserError, match="at least 7 positions"):
        bound[1].raw_length(6)
    with pytest.raises(UserError, match="more than 3"):
        bound[1].longest_piece(3)
