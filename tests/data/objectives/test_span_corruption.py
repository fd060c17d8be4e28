import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives import (
    Piece,
    RowKeys,
    SpanCorruption,
    examples_of,
    inputs_and_targets,
    noise_counts,
    restore,
)


def corrupt(objective, rows, length, seed=0):
    raw = np.random.default_rng(seed).integers(8, 264, (rows, objective.raw_length(length)), dtype=np.int32)
    return raw, objective(raw, RowKeys(seed, np.arange(rows)), length)


def test_a_row_that_a_person_can_check(vocabulary):
    objective = SpanCorruption(noise_density=0.5, mean_span=2.0, mode_tokens=True).with_vocabulary(vocabulary)
    raw = np.arange(100, 100 + objective.raw_length(13), dtype=np.int32)[None]
    [example] = examples_of(objective(raw, RowKeys(0, np.array([5])), 13), 0)
    inputs, targets = inputs_and_targets(example)
    first, second = vocabulary.sentinel_id(0), vocabulary.sentinel_id(1)
    assert raw.shape == (1, 8)
    assert inputs[0] == vocabulary.mode_token_id("[NLU]")
    assert [i for i in inputs if i >= first] == [first, second]
    assert [i for i in targets if i >= first] == [first, second]
    assert targets[0] == first
    assert targets[-1] == vocabulary.eod_id
    assert example.weights.tolist() == [0] * (len(inputs) - 1) + [1] * len(targets)
    assert restore(inputs, targets, vocabulary).tolist() == raw[0].tolist()


@given(
    st.sampled_from([(3.0, 0.15), (8.0, 0.15), (3.0, 0.5), (64.0, 0.5), (1.0, 0.9)]),
    st.integers(6, 200),
    st.booleans(),
    st.integers(0, 2**40),
)
def test_restoring_gives_back_the_text(vocabulary, kind, length, mode_tokens, row):
    objective = SpanCorruption(mean_span=kind[0], noise_density=kind[1], mode_tokens=mode_tokens)
    objective = objective.with_vocabulary(vocabulary)
    raw = np.random.default_rng(0).integers(0, 264, (1, objective.raw_length(length)), dtype=np.int32)
    raw = np.where(np.isin(raw, (3, 4, 5)), 0, raw)  # No modes, and many tokens with id 0.
    fields = objective(raw, RowKeys(0, np.array([row])), length)
    [example] = examples_of(fields, 0)
    assert len(example.inputs) == length
    inputs, targets = inputs_and_targets(example)
    assert restore(inputs, targets, vocabulary).tolist() == raw[0].tolist()


@pytest.mark.parametrize(("mean_span", "density"), [(3.0, 0.15), (8.0, 0.5), (32.0, 0.15), (64.0, 0.5)])
def test_noise_and_spans_are_as_asked(vocabulary, mean_span, density):
    objective = SpanCorruption(mean_span=mean_span, noise_density=density).with_vocabulary(vocabulary)
    raw, fields = corrupt(objective, 50, 1024)
    noise, spans = noise_counts(raw.shape[1], density, mean_span)
    lengths = []
    for row in range(50):
        inputs, targets = inputs_and_targets(examples_of(fields, row)[0])
        is_sentinel = np.isin(targets, [vocabulary.sentinel_id(i) for i in range(spans)])
        assert is_sentinel.sum() == spans
        assert len(targets) - 1 - spans == noise
        # Text comes first, and noise last.
        assert inputs[0] < 264
        assert inputs[-1] == vocabulary.sentinel_id(spans - 1)
        lengths += np.diff([*np.flatnonzero(is_sentinel), len(targets) - 1]).tolist()
    assert noise / raw.shape[1] == pytest.approx(density, abs=1e-3)
    # Whole spans: their number is rounded.
    assert abs(noise / (np.mean(lengths) - 1) - noise / mean_span) <= 0.5
    assert min(lengths) >= 2


def test_every_division_into_spans_is_equally_likely(vocabulary):
    objective = SpanCorruption(mean_span=2.0, noise_density=0.5).with_vocabulary(vocabulary)
    # 8 tokens: 4 of noise in 2 spans, so three divisions of each side.
    raw = np.tile(np.arange(10, 18, dtype=np.int32), (9000, 1))
    fields = objective(raw, RowKeys(0, np.arange(9000)), 12)
    first_of_noise = np.argmax(fields["decoder_target_tokens"][:, 6:] == vocabulary.sentinel_id(1), axis=1)
    first_of_text = np.argmax(fields["decoder_input_tokens"] == vocabulary.sentinel_id(0), axis=1)
    pairs, counts = np.unique(np.stack([first_of_noise, first_of_text]), axis=1, return_counts=True)
    assert pairs.shape[1] == 9
    np.testing.assert_allclose(counts, 1000, rtol=0.12)


@settings(max_examples=30)
@given(st.integers(8, 60), st.integers(0, 1000))
def test_no_learnt_position_sees_its_own_target(vocabulary, visible, length, row):
    objective = SpanCorruption(mode_tokens=True).with_vocabulary(vocabulary)
    raw = np.arange(8, 8 + objective.raw_length(length), dtype=np.int32)[None]
    fields = objective(raw, RowKeys(0, np.array([row])), length)
    mask = visible(fields, 0)
    prefix = int(fields["decoder_causal_attention"][0].sum())
    assert mask[:prefix, :prefix].all()
    for position in np.flatnonzero(fields["decoder_loss_weights"][0]):
        target = fields["decoder_target_tokens"][0, position]
        seen = fields["decoder_input_tokens"][0][mask[position]]
        # A sentinel stands in the inputs as well; a token of text stands only once.
        assert target not in seen or target in fields["decoder_input_tokens"][0, :prefix]
        assert target not in seen or target >= vocabulary.sentinel_id(0)


def test_budget_of_t5_leaves_the_rest_of_a_row_empty(vocabulary):
    objective = SpanCorruption(inputs_length=512, mode_tokens=True).with_vocabulary(vocabulary)
    assert objective.raw_length(1024) == 568
    raw, fields = corrupt(objective, 3, 1024)
    inputs, targets = inputs_and_targets(examples_of(fields, 1)[0])
    assert (len(inputs), len(targets)) == (512, 114)
    assert fields["decoder_segment_ids"].sum(axis=1).tolist() == [625] * 3
    assert fields["decoder_loss_weights"].sum(axis=1).tolist() == [114] * 3
    assert fields["decoder_positions"][0, :625].tolist() == list(range(625))
    assert objective.statistics(1024)["real_positions"] == 625 / 1024
    assert restore(inputs, targets, vocabulary).tolist() == raw[1].tolist()
    with pytest.raises(UserError, match="lower inputs_length"):
        objective.raw_length(600)


def test_running_out_of_sentinels_is_found_before_training(make_vocabulary):
    few = make_vocabulary(sentinels=92)
    objective = SpanCorruption(mode_tokens=True).with_vocabulary(few)
    with pytest.raises(UserError, match=r"needs 93 sentinels for 2048 positions.*has 92: set .*examples_per_row = 2"):
        objective.raw_length(2048)
    with pytest.raises(UserError, match="needs 93 sentinels"):
        objective.longest_piece(2048)
    piece = Piece(np.full(2000, 9, np.int32), previous=1)
    with pytest.raises(UserError, match="needs 100 sentinels"):
        objective.example(piece, 0, np.random.Generator(np.random.Philox(0)))
    with pytest.raises(UserError, match="needs sentinels <extra_id_0>"):
        SpanCorruption().with_vocabulary(make_vocabulary(sentinels=0))
    enough = SpanCorruption(mode_tokens=True).with_vocabulary(make_vocabulary(sentinels=93))
    assert enough.raw_length(2048) == 1861


def test_bad_settings():
    with pytest.raises(UserError, match="noise_density"):
        SpanCorruption(noise_density=1.0)
    with pytest.raises(UserError, match="mean_span"):
        SpanCorruption(mean_span=0.5)
    with pytest.raises(UserError, match="with_vocabulary"):
        corrupt(SpanCorruption(), 1, 64)
