import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives import (
    Piece,
    PrefixDenoiser,
    RowKeys,
    SpanDenoiser,
    Ul2,
    Ul2r,
    examples_of,
    inputs_and_targets,
    noise_counts,
    randomness,
    restore,
)


def text(rows, length, seed=0):
    raw = np.random.default_rng(seed).integers(0, 264, (rows, length), dtype=np.int32)
    return np.where(np.isin(raw, (3, 4, 5)), 0, raw)


def is_part_of(part, whole):
    return part.astype("<i4").tobytes() in whole.astype("<i4").tobytes()


def test_the_seven_denoisers_and_the_four():
    assert [d.label for d, _ in Ul2().mixture] == [
        *("spans(3, 0.15)", "spans(8, 0.15)", "prefix(0.25)", "spans(3, 0.5)"),
        *("spans(8, 0.5)", "spans(64, 0.15)", "spans(64, 0.5)"),
    ]
    assert [d.mode for d, _ in Ul2().mixture] == ["[NLU]", "[NLU]", "[S2S]", *["[NLG]"] * 4]
    assert {rate for _, rate in Ul2().mixture} == {1 / 7}
    assert [(d.label, d.mode, rate) for d, rate in Ul2r().mixture] == [
        ("prefix(0.5)", "[S2S]", 0.5),
        ("spans(3, 0.15)", "[NLU]", 0.25),
        ("spans(32, 0.15)", "[NLG]", 0.125),
        ("spans(3, 0.5)", "[NLG]", 0.125),
    ]


def test_budgets_at_2048(vocabulary):
    objective = Ul2r().with_vocabulary(vocabulary)
    table = objective.denoiser_lengths(2048)
    assert [row["raw"] for row in table] == [2048, 1861, 2027, 1535]
    assert {row["positions"] for row in table} == {2048}
    assert objective.raw_length(2048) == objective.stride(2048) == 2048
    used = (0.5 * 2048 + 0.25 * 1861 + 0.125 * 2027 + 0.125 * 1535) / 2048
    assert objective.statistics(2048)["raw_tokens_used"] == pytest.approx(used)
    assert objective.statistics(2048)["real_positions"] == 1.0


def test_t5_budgets_at_512_and_512(vocabulary):
    table = Ul2(inputs_length=512).with_vocabulary(vocabulary).denoiser_lengths(1024)
    found = {row["denoiser"]: (row["raw"], row["inputs"], row["targets"]) for row in table}
    assert found["spans(3, 0.15)"] == (568, 512, 114)
    assert found["spans(64, 0.5)"] == (1006, 512, 512)
    assert found["prefix(0.25)"][0] == 1024


@pytest.mark.parametrize("objective", [Ul2(), Ul2r()])
def test_shares_are_as_asked_on_a_hundred_thousand_examples(objective):
    words = randomness.draw_words(RowKeys(5, np.arange(100_000)), 1)[:, 0]
    choices = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    for drawn in (words, choices):
        counts = np.bincount(objective.choose(drawn), minlength=len(objective.mixture))
        for count, (_, rate) in zip(counts, objective.mixture, strict=True):
            assert abs(count - 100_000 * rate) < 4 * np.sqrt(100_000 * rate * (1 - rate))
    assert sum(objective.count_denoisers(np.full(100_000, 50), choices).values()) == 100_000


def test_rates_are_shares_in_any_unit():
    objective = Ul2(denoisers=[SpanDenoiser(), PrefixDenoiser(), SpanDenoiser(8)], rates=[3, 1, 0])
    assert objective.mixture == ((SpanDenoiser(), 0.75), (PrefixDenoiser(), 0.25))
    assert objective.choose(np.array([0, 2**63, 2**64 - 1], np.uint64)).tolist() == [0, 0, 1]
    assert hash(objective) == hash(Ul2(denoisers=objective.denoisers, rates=(3, 1, 0)))
    assert objective.name != Ul2().name != Ul2(mode_tokens=False).name


@settings(max_examples=40)
@given(
    st.sampled_from([Ul2(), Ul2r(), Ul2r(mode_tokens=False), Ul2r(examples_per_row=2), Ul2(inputs_length=32)]),
    st.integers(40, 100),
    st.integers(0, 2**50),
)
def test_rows_restore_to_part_of_their_slice(vocabulary, objective, half, row):
    objective, length = objective.with_vocabulary(vocabulary), 2 * half
    raw = text(4, objective.raw_length(length))
    fields = objective(raw, RowKeys(0, row + np.arange(4)), length)
    parts = raw.reshape(4 * objective.examples_per_row, -1)
    examples = [example for index in range(4) for example in examples_of(fields, index)]
    lengths = {line["raw"] for line in objective.denoiser_lengths(length)}
    assert len(examples) == len(parts)
    for example, own in zip(examples, parts, strict=True):
        restored = restore(*inputs_and_targets(example), vocabulary)
        assert len(restored) in lengths
        assert is_part_of(restored, own)
    if objective.inputs_length is None:
        assert sum(len(example.inputs) for example in examples) == 4 * length
    assert fields["decoder_target_tokens"].max() < vocabulary.size


def test_each_denoiser_of_a_row_shows_in_its_mode_and_its_noise(vocabulary):
    objective = Ul2r().with_vocabulary(vocabulary)
    raw = text(2000, objective.raw_length(64), seed=1)
    fields = objective(raw, RowKeys(1, np.arange(2000)), 64)
    modes = fields["decoder_input_tokens"][:, 0]
    for mode, share in (("[S2S]", 0.5), ("[NLU]", 0.25), ("[NLG]", 0.25)):
        assert (modes == vocabulary.mode_token_id(mode)).mean() == pytest.approx(share, abs=0.05)
    regular = modes == vocabulary.mode_token_id("[NLU]")
    targets = fields["decoder_loss_weights"][regular].sum(axis=1)
    assert set(targets) == {objective.denoiser_lengths(64)[1]["targets"]}
    assert objective.statistics(64)["targets"] == pytest.approx(fields["decoder_loss_weights"].mean(), abs=0.02)


def test_no_part_of_a_slice_is_left_out_systematically(vocabulary):
    objective = Ul2(denoisers=[SpanDenoiser(3, 0.5), PrefixDenoiser()], rates=[1.0, 1e-9], inputs_length=20)
    objective = objective.with_vocabulary(vocabulary)
    slice_length, used = objective.raw_length(64), objective.denoiser_lengths(64)[0]["raw"]
    assert used < slice_length / 2
    raw = np.tile(np.arange(20, 20 + slice_length, dtype=np.int32), (2000, 1))
    fields = objective(raw, RowKeys(0, np.arange(2000)), 64)
    seen = np.bincount(
        np.concatenate([restore(*inputs_and_targets(examples_of(fields, row)[0]), vocabulary) for row in range(2000)])
    )
    assert seen[20 : 20 + slice_length].min() > 2000 / -(-slice_length // used) * 0.85


@settings(max_examples=60)
@given(st.sampled_from([Ul2(), Ul2r(), Ul2r(mode_tokens=False)]), st.integers(1, 200), st.integers(0, 2**64 - 1))
def test_documents_of_any_length(vocabulary, objective, length, choice):
    objective = objective.with_vocabulary(vocabulary)
    piece = Piece(text(1, length)[0], previous=vocabulary.eod_id)
    example = objective.example(piece, choice, np.random.Generator(np.random.Philox(3)))
    chosen = np.array([choice], np.uint64)
    assert len(example.inputs) == objective.packed_length(np.array([length]), chosen)[0]
    assert len(example.inputs) == len(example.targets) == len(example.weights) >= example.prefix >= 1
    restored = restore(*inputs_and_targets(example), vocabulary)
    assert restored[-length:].tolist() == piece.tokens.tolist()
    if objective.mode_tokens:
        assert len(restored) == length
    assert example.weights.sum() == len(example.inputs) - example.prefix + 1
    [label] = [label for label, count in objective.count_denoisers(np.array([length]), chosen).items() if count]
    denoiser = objective.mixture[objective.choose(chosen)[0]][0]
    expected = {1: "too short: causal", 2: "too short: prefix"}.get(length, denoiser.label)
    assert label == expected
    if length < 3 or isinstance(denoiser, PrefixDenoiser):
        assert len(example.inputs) == length
    else:
        spans = noise_counts(length, denoiser.noise_density, denoiser.mean_span)[1]
        assert len(example.inputs) == length + 2 * spans + objective.mode_tokens


@given(st.integers(8, 400), st.integers(1, 2))
def test_the_longest_piece_fits_whatever_its_choice(vocabulary, half, parts):
    objective = Ul2(examples_per_row=parts).with_vocabulary(vocabulary)
    longest = objective.longest_piece(2 * half)
    choices = np.linspace(0, 2**64 - 2049, 50).astype(np.uint64)
    assert objective.packed_length(np.full(50, longest), choices).max() <= 2 * half // parts
    assert objective.packed_length(np.full(50, longest + 1), choices).max() > 2 * half // parts
    each = objective.longest_pieces(2 * half, choices)
    assert each.min() == longest
    assert each.max() == 2 * half // parts


def test_examples_of_a_row_are_segments_with_keys_of_their_own(vocabulary, visible):
    objective = Ul2r(examples_per_row=3).with_vocabulary(vocabulary)
    raw = text(2, objective.raw_length(60))
    raw[:, :20], raw[:, 20:40] = raw[:, 40:], raw[:, 40:]
    fields = objective(raw, RowKeys(0, np.array([4, 9])), 60)
    assert fields["decoder_segment_ids"][0].tolist() == [1] * 20 + [2] * 20 + [3] * 20
    assert fields["decoder_positions"][1].tolist() == list(range(20)) * 3
    first, second, third = (inputs_and_targets(example)[0].tolist() for example in examples_of(fields, 0))
    assert first != second or second != third
    mask = visible(fields, 0)
    assert not mask[:20, 20:].any()
    assert not mask[20:, :20].any()
    with pytest.raises(UserError, match="does not divide into 3 examples"):
        objective.raw_length(61)


def test_a_vocabulary_without_modes(make_vocabulary):
    plain = make_vocabulary(modes=False)
    with pytest.raises(UserError, match=r"no mode token \[\w+\]: set Ul2r.mode_tokens = False"):
        Ul2r().with_vocabulary(plain)
    objective = Ul2r(mode_tokens=False).with_vocabulary(plain)
    raw = text(8, objective.raw_length(64))
    fields = objective(raw, RowKeys(0, np.arange(8)), 64)
    for row in range(8):
        [example] = examples_of(fields, row)
        assert len(example.inputs) == 64
        assert is_part_of(restore(*inputs_and_targets(example), plain), raw[row])


def test_too_few_sentinels_name_the_way_out(make_vocabulary):
    objective = Ul2r().with_vocabulary(make_vocabulary(sentinels=128))
    with pytest.raises(UserError, match=r"spans\(3, 0.5\) needs 256 sentinels .* set Ul2r.examples_per_row = 2,"):
        objective.raw_length(2048)
    assert Ul2r(examples_per_row=2).with_vocabulary(make_vocabulary(sentinels=128)).raw_length(2048) == 2048
    with pytest.raises(UserError, match="spans"):
        objective.longest_piece(2048)


@pytest.mark.parametrize(("length", "sentinels"), [(2048, 100), (2048, 30), (1000, 100), (999, 100), (2047, 255)])
def test_the_advice_about_sentinels_works(make_vocabulary, length, sentinels):
    few = make_vocabulary(sentinels=sentinels)
    with pytest.raises(UserError, match="sentinels") as raised:
        Ul2().with_vocabulary(few).raw_length(length)
    advised = int(re.search(r"examples_per_row = (\d+)", str(raised.value))[1])
    assert length % advised == 0
    bound = Ul2(examples_per_row=advised).with_vocabulary(few)
    assert bound.raw_length(length) > 0
    assert bound.longest_piece(length) > 0


def test_a_budget_of_inputs_is_of_windows(vocabulary):
    with pytest.raises(UserError, match="inputs_length"):
        Ul2r(inputs_length=1024).with_vocabulary(vocabulary).longest_piece(2048)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": [1.0]}, "1 numbers for 7 denoisers"),
        ({"rates": [0.0] * 7}, "not be negative, nor all zero"),
        ({"rates": [-1.0, 1, 1, 1, 1, 1, 1]}, "not be negative"),
        ({"rates": [float("inf"), 1, 1, 1, 1, 1, 1]}, "finite"),
        ({"rates": [float("nan"), 1, 1, 1, 1, 1, 1]}, "finite"),
        ({"denoisers": []}, "at least one"),
        ({"denoisers": ["R"]}, "must be SpanDenoiser or PrefixDenoiser"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(UserError, match=message):
        Ul2(**options)


def test_bad_prefix_density():
    with pytest.raises(UserError, match=r"at most 0\.5"):
        PrefixDenoiser(0.6)


def test_prefix_density_keeps_t5s_shortest_prefix(vocabulary):
    objective = Ul2(denoisers=[PrefixDenoiser(0.25)]).with_vocabulary(vocabulary)
    raw = text(3000, objective.raw_length(41))
    weights = objective(raw, RowKeys(0, np.arange(3000)), 41)["decoder_loss_weights"]
    given = (weights == 0).sum(axis=1)
    # 41 tokens: between round(0.5 * 40) = 20 and 40 of them are given.
    assert (given.min(), given.max()) == (20, 40)
    assert weights.mean() == pytest.approx(0.27, abs=0.01)


def test_restore_refuses_what_does_not_fit(vocabulary):
    with pytest.raises(ValueError, match="differ in their sentinels"):
        restore(np.array([9, vocabulary.sentinel_id(0)]), np.array([9, 1]), vocabulary)
