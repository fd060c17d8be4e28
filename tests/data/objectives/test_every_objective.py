"""What holds for every objective; a new one is a line in `WINDOWED` or `PACKED`."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import batch as batch_lib
from t5x_scale.data import objectives

LENGTH = 64
# Digests of 8 rows at a fixed seed: the bytes of a run must be the same on any day.
WINDOWED = {
    objectives.CausalLm(): "db868d58700b5d1a",
    objectives.PrefixLm(): "ddc5e6a3baa26b28",
    objectives.SpanCorruption(): "70e44bfa6d22f540",
    objectives.SpanCorruption(inputs_length=32, mode_tokens=True): "8956e345941c787a",
    objectives.Ul2(): "8a6fc79ba1070f17",
    objectives.Ul2r(): "04d8b16e8bc453a3",
    objectives.Ul2r(examples_per_row=2): "d6b6a805257db1fd",
    objectives.Ul2r(mode_tokens=False): "ed14572c9a0d9800",
    objectives.Ul2r(in_place=True): "03be77b0436d7b41",
    objectives.FillInTheMiddle(): "85f345df44f446a1",
    objectives.SpanFromLeft(spans=4): "62ed07ad79a4262d",
    objectives.SpanFromBothSides(spans=4): "e1f0ce604a49e32e",
    objectives.SpanFromBothSides(span_length=16, spans=1, mode="[NLG]"): "10c69eecdfcdb6cf",
    objectives.MaskedDiffusion(): "7e6333202d6152ba",
    objectives.MaskedDiffusion(shifted=True, stratified=True): "f13a566251b806a2",
}
SUPERVISED = [objectives.Supervised(), objectives.Supervised(prefix_bidirectional=True)]
ALL = [*WINDOWED, *SUPERVISED]
# Those that only ask for spans have no form for documents.
PACKED = [o for o in ALL if not isinstance(o, (objectives.SpanFromLeft, objectives.SpanFromBothSides))]


def short_name(objective):
    return f"{type(objective).__name__}{ALL.index(objective)}"


def raw_rows(objective, rows, seed=0, low=0):
    raw = np.random.default_rng(seed).integers(low, 264, (rows, objective.raw_length(LENGTH)), dtype=np.int32)
    return np.where((raw > 0) & (raw < 8), 0, raw)


def digest(fields):
    content = b"".join(name.encode() + fields[name].tobytes() for name in sorted(fields))
    return hashlib.sha256(content).hexdigest()[:16]


@pytest.mark.parametrize("objective", WINDOWED, ids=short_name)
def test_bytes_are_the_same_on_any_day(objective, vocabulary):
    bound = objective.with_vocabulary(vocabulary)
    raw = (np.arange(8 * bound.raw_length(LENGTH), dtype=np.int32) * 37 % 251 + 8).reshape(8, -1)
    fields = bound(raw, objectives.RowKeys(7, np.arange(8)), LENGTH)
    assert digest(fields) == WINDOWED[objective]


@pytest.mark.parametrize("objective", WINDOWED, ids=short_name)
@settings(max_examples=8)
@given(data=st.data())
def test_a_row_does_not_depend_on_its_batch(objective, vocabulary, data):
    bound = objective.with_vocabulary(vocabulary)
    raw = raw_rows(bound, 12)
    before = raw.copy()
    keys = objectives.RowKeys(7, 10**12 + np.arange(12))
    whole = bound(raw, keys, LENGTH)
    assert batch_lib.check_batch(whole) == (12, LENGTH)
    np.testing.assert_array_equal(raw, before)
    chosen = np.array(data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=12)))
    part = bound(raw[chosen], keys.take(chosen), LENGTH)
    assert list(part) == list(whole)
    for name, field in part.items():
        np.testing.assert_array_equal(field, whole[name][chosen])


@pytest.mark.parametrize("objective", WINDOWED, ids=short_name)
def test_rows_differ_by_seed_and_row(objective, vocabulary):
    bound = objective.with_vocabulary(vocabulary)
    if isinstance(objective, objectives.CausalLm):
        pytest.skip("nothing is random")
    raw = np.tile(raw_rows(bound, 1), (64, 1))

    def rows(seed, first):
        fields = bound(raw, objectives.RowKeys(seed, first + np.arange(64)), LENGTH)
        return {b"".join(field[row].tobytes() for field in fields.values()) for row in range(64)}

    assert len(rows(0, 0)) > 20
    assert rows(0, 0) != rows(1, 0)
    assert rows(0, 0) != rows(0, 64)


@pytest.mark.parametrize("objective", WINDOWED, ids=short_name)
def test_ids_weights_and_fields(objective, vocabulary):
    bound = objective.with_vocabulary(vocabulary)
    fields = bound(raw_rows(bound, 20), objectives.RowKeys(1, np.arange(20)), LENGTH)
    for name in (batch_lib.INPUT_TOKENS, batch_lib.TARGET_TOKENS):
        assert 0 <= fields[name].min() <= fields[name].max() < vocabulary.size
    assert (batch_lib.PREFIX in fields) == objective.has_prefix
    assert fields[batch_lib.LOSS_WEIGHTS].sum(axis=1).min() >= 0
    real = np.mean(fields[batch_lib.SEGMENT_IDS] > 0) if batch_lib.SEGMENT_IDS in fields else 1.0
    assert real == pytest.approx(bound.statistics(LENGTH).get("real_positions", 1.0), abs=0.02)


@pytest.mark.parametrize("objective", WINDOWED, ids=short_name)
def test_a_token_with_id_0_is_a_token(objective, vocabulary):
    """Rows of nothing but id 0 keep weights, segments and lengths of rows of anything else."""
    bound = objective.with_vocabulary(vocabulary)
    keys, shape = objectives.RowKeys(3, np.arange(6)), (6, bound.raw_length(LENGTH))
    zeros = bound(np.zeros(shape, np.int32), keys, LENGTH)
    others = bound(np.full(shape, 100, np.int32), keys, LENGTH)
    for name in zeros:
        if name not in (batch_lib.INPUT_TOKENS, batch_lib.TARGET_TOKENS):
            np.testing.assert_array_equal(zeros[name], others[name])
    filled = others.get(batch_lib.SEGMENT_IDS, np.ones((6, LENGTH))) > 0
    for name in (batch_lib.INPUT_TOKENS, batch_lib.TARGET_TOKENS):
        replaced = np.where((others[name] == 100) & filled, 0, others[name])
        np.testing.assert_array_equal(zeros[name], replaced)


@pytest.mark.parametrize("objective", PACKED, ids=short_name)
@settings(max_examples=12)
@given(length=st.integers(1, 70), choice=st.integers(0, 2**64 - 1), key=st.integers(0, 99))
def test_packed_lengths_are_exact(objective, vocabulary, length, choice, key):
    bound = objective.with_vocabulary(vocabulary)
    tokens = np.full(length, 0, np.int32)
    tokens[-1] = vocabulary.eod_id
    piece = objectives.Piece(tokens, previous=vocabulary.eod_id, target_start=length // 2)
    make = [bound.example(piece, choice, np.random.Generator(np.random.Philox(key))) for _ in range(2)]
    expected = bound.packed_length(np.array([length]), np.array([choice], np.uint64))
    for example in make:
        assert len(example.inputs) == len(example.targets) == len(example.weights) == expected[0]
        assert 0 <= example.prefix <= expected[0]
        assert (example.inputs.dtype, example.targets.dtype) == (np.int32, np.int32)
        assert example.weights.dtype == np.float32
    np.testing.assert_array_equal(make[0].inputs, make[1].inputs)


@pytest.mark.parametrize("objective", [o for o in PACKED if getattr(o, "inputs_length", None) is None], ids=short_name)
@settings(max_examples=20)
@given(length=st.integers(8, 90), choice=st.integers(0, 2**64 - 1))
def test_the_longest_piece_of_a_choice_fits_and_so_do_shorter_ones(objective, vocabulary, length, choice):
    bound = objective.with_vocabulary(vocabulary)
    parts = getattr(bound, "examples_per_row", 1)
    [longest] = bound.longest_pieces(parts * length, np.array([choice], np.uint64)).tolist()
    assert bound.longest_piece(parts * length) <= longest
    sizes = np.arange(1, longest + 2)
    positions = bound.packed_length(sizes, np.full(len(sizes), choice, np.uint64))
    assert positions[:-1].max() <= length < positions[-1]


@pytest.mark.parametrize("objective", ALL, ids=short_name)
def test_names_tell_settings_apart(objective):
    assert [other.name for other in ALL].count(objective.name) == 1
    # It is part of a checkpoint's data state, which stays under a kilobyte.
    assert len(objective.name) < 400


@pytest.mark.parametrize("objective", WINDOWED, ids=short_name)
def test_windows_of_another_length_are_refused(objective, vocabulary):
    bound = objective.with_vocabulary(vocabulary)
    with pytest.raises(ValueError, match="windows of"):
        bound(raw_rows(bound, 2)[:, 1:], objectives.RowKeys(0, np.arange(2)), LENGTH)
