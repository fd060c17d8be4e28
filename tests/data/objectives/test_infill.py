import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError
from t5x_scale.data.eval_source import EvalSource
from t5x_scale.data.freezing import freeze
from t5x_scale.data.objectives import (
    RowKeys,
    SpanDenoiser,
    SpanFromBothSides,
    SpanFromLeft,
    Ul2r,
    examples_of,
    inputs_and_targets,
    restore,
)

SPANS = st.tuples(st.integers(1, 9), st.integers(1, 6))
MODES = st.sampled_from(["[NLU]", "[NLG]", None])


def make_both(vocabulary, span_length, spans, mode):
    settings = {"span_length": span_length, "spans": spans, "mode": mode}
    return [kind(**settings).with_vocabulary(vocabulary) for kind in (SpanFromLeft, SpanFromBothSides)]


def text(rows, length):
    """Rows of which no two tokens are equal, and none is a control token."""
    return 100_000 + np.arange(rows * length, dtype=np.int32).reshape(rows, length)


def scored(fields):
    """The targets with a weight, row after row; every weight is 0 or 1."""
    weights = fields[batch_lib.LOSS_WEIGHTS]
    assert set(np.unique(weights)) <= {0.0, 1.0}
    return [row[mine > 0].tolist() for row, mine in zip(fields[batch_lib.TARGET_TOKENS], weights, strict=True)]


@settings(max_examples=60)
@given(SPANS, MODES, st.integers(74, 95), st.integers(0, 2**63 - 8))
def test_both_forms_score_the_same_tokens(vocabulary, shape, mode, length, row):
    span_length, spans = shape
    left, both = make_both(vocabulary, span_length, spans, mode)
    assert left.raw_length(length) == both.raw_length(length) == left.stride(length) == both.stride(length)
    raw, keys = text(4, left.raw_length(length)), RowKeys(5, row + np.arange(4))
    asked = [objective(raw, keys, length) for objective in (left, both)]
    assert scored(asked[0]) == scored(asked[1])
    for tokens, found in zip(raw, scored(asked[0]), strict=True):
        assert len(found) == spans * span_length
        parts = np.split(np.array(found), spans)
        for span in parts:
            assert np.ptp(span) == span_length - 1
            assert tokens[0] < span[0] <= span[-1] < tokens[-1]
        assert all(after[0] - before[-1] > 1 for before, after in itertools.pairwise(parts))


@settings(max_examples=30)
@given(SPANS, MODES, st.integers(74, 95), st.integers(0, 99))
def test_the_left_form_is_the_text_and_nothing_else(vocabulary, shape, mode, length, row):
    left, _ = make_both(vocabulary, *shape, mode)
    raw = text(3, left.raw_length(length))
    fields = left(raw, RowKeys(0, row + np.arange(3)), length)
    assert batch_lib.check_batch(fields) == (3, length)
    for index in range(3):
        [example] = examples_of(fields, index)
        assert example.prefix == 0
        assert example.inputs.tolist() == raw[index, :-1].tolist()
        assert example.targets.tolist() == raw[index, 1:].tolist()
    real = fields[batch_lib.SEGMENT_IDS] > 0
    assert not fields[batch_lib.LOSS_WEIGHTS][~real].any()
    assert real.mean() == pytest.approx(left.statistics(length)["real_positions"])
    assert fields[batch_lib.LOSS_WEIGHTS].mean() == pytest.approx(left.statistics(length)["targets"])


@settings(max_examples=30)
@given(SPANS, MODES, st.integers(74, 95), st.integers(0, 99))
def test_the_form_from_both_sides_gives_all_the_rest_and_fills_the_row(vocabulary, shape, mode, length, row):
    span_length, spans = shape
    _, both = make_both(vocabulary, *shape, mode)
    raw = text(3, both.raw_length(length))
    fields = both(raw, RowKeys(0, row + np.arange(3)), length)
    assert batch_lib.check_batch(fields) == (3, length)
    sentinels = [vocabulary.sentinel_id(index) for index in range(spans)]
    for index in range(3):
        [example] = examples_of(fields, index)
        inputs, targets = inputs_and_targets(example)
        assert len(inputs) + len(targets) == length + 1
        assert restore(inputs, targets, vocabulary).tolist() == raw[index].tolist()
        assert targets[-1] == vocabulary.eod_id
        if mode is not None:
            assert inputs[0] == vocabulary.mode_token_id(mode)
        assert [token for token in inputs if token in sentinels] == sentinels
        assert targets[: -1 : span_length + 1].tolist() == sentinels
        held_out = np.delete(targets[:-1], np.arange(0, len(targets) - 1, span_length + 1))
        assert scored(fields)[index] == held_out.tolist()
        assert not set(held_out.tolist()) & set(inputs.tolist())


def test_spans_are_a_function_of_seed_and_row(vocabulary):
    left, both = make_both(vocabulary, 3, 4, "[NLU]")
    starts = left.span_starts(RowKeys(1, np.arange(2000)), 60)
    np.testing.assert_array_equal(starts, both.span_starts(RowKeys(1, np.arange(2000)), 60))
    np.testing.assert_array_equal(starts[7:9], left.span_starts(RowKeys(1, np.array([7, 8])), 60))
    assert (starts != left.span_starts(RowKeys(2, np.arange(2000)), 60)).any(axis=1).mean() > 0.99


def test_every_place_is_as_likely_as_any_other(vocabulary):
    """7 given tokens have 6 gaps: 15 pairs of them, and of a single span 10 places in 12 tokens."""
    left, _ = make_both(vocabulary, 2, 2, None)
    starts = left.span_starts(RowKeys(0, np.arange(15_000)), 11)
    places, counts = np.unique(starts, axis=0, return_counts=True)
    assert len(places) == 15
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)
    single, _ = make_both(vocabulary, 2, 1, None)
    places, counts = np.unique(single.span_starts(RowKeys(0, np.arange(9000)), 12), return_counts=True)
    assert places.tolist() == [*range(1, 10)]
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_control_tokens_are_those_of_span_denoising(vocabulary):
    """A model that learnt the denoiser's form is asked in no other: mode first, sentinels in order, on both sides."""
    denoising = Ul2r(denoisers=[SpanDenoiser(3.0, 0.15)], rates=[1.0]).with_vocabulary(vocabulary)
    spans = denoising.denoiser_lengths(64)[0]["spans"]
    found = []
    for objective in (denoising, make_both(vocabulary, 3, spans, "[NLU]")[1]):
        fields = objective(text(1, objective.raw_length(64)), RowKeys(0, np.array([0])), 64)
        inputs, targets = inputs_and_targets(examples_of(fields, 0)[0])
        controls = [[token for token in side if token < 100_000] for side in (inputs, targets)]
        found.append((inputs[0], targets[0], targets[-1], *controls))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", [SpanFromLeft, SpanFromBothSides])
def test_rows_too_short_say_how_long_they_must_be(vocabulary, kind):
    objective = kind(span_length=5, spans=2).with_vocabulary(vocabulary)
    with pytest.raises(UserError, match=r"too short for 2 spans of 5 tokens .*: 18 positions"):
        objective.raw_length(17)
    assert objective.raw_length(18) == 13


@pytest.mark.parametrize("setting", ["span_length", "spans"])
def test_bad_settings(setting):
    with pytest.raises(UserError, match=rf"SpanFromLeft\.{setting} is 0: at least 1"):
        SpanFromLeft(**{setting: 0})


def test_a_vocabulary_without_what_it_needs(make_vocabulary):
    with pytest.raises(UserError, match="needs 9 sentinels, and the vocabulary 'small' has 8"):
        SpanFromBothSides(spans=9).with_vocabulary(make_vocabulary(sentinels=8))
    with pytest.raises(UserError, match=r"no mode token \[NLU\]"):
        SpanFromBothSides().with_vocabulary(make_vocabulary(modes=False))
    assert SpanFromLeft(spans=9).with_vocabulary(make_vocabulary(sentinels=0, modes=False))


def test_a_pass_over_a_split_asks_both_for_the_same(vocabulary, tmp_path):
    """The last batch is filled up with rows that score nothing."""
    source = {"source": {"task": "s"}, "vocabulary_fingerprint": "v", "vocabulary_size": 200_000, "separator_id": 1}
    store = freeze([text(1, 1000)[0]], tmp_path / "s", **source)
    passes = [
        EvalSource("s", store, objective, length=64, batch_size=4, seed=3)
        for objective in make_both(vocabulary, 3, 4, "[NLU]")
    ]
    assert [one.num_rows for one in passes] == [1001 // 55] * 2
    found = [[row for index in range(one.num_batches) for row in scored(one.batch(index))] for one in passes]
    assert found[0] == found[1]
    assert [len(row) for row in found[0]] == [12] * 18 + [0] * 2
