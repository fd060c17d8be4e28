"""Spans in place: what is asked is the same, and it is asked where the text would ask it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import batch as batch_lib
from t5x_scale.data import objectives
from t5x_scale.data.objectives.denoisers import sentinel_ids
from t5x_scale.data.rows.packing import assemble

FORMS = {
    "ul2r": lambda **form: objectives.Ul2r(**form),
    "no modes": lambda **form: objectives.Ul2(mode_tokens=False, **form),
    "two a row": lambda **form: objectives.Ul2r(examples_per_row=2, **form),
    "budget": lambda **form: objectives.SpanCorruption(inputs_length=40, **form),
    "asked": lambda **form: objectives.SpanFromBothSides(spans=5, **form),
    "asked without a mode": lambda **form: objectives.SpanFromBothSides(spans=2, span_length=7, mode=None, **form),
}
LENGTH = 80


def text(length, rows=6):
    """No two tokens alike, none of them a control token; a token says where it stands."""
    return 100_000 + np.arange(rows * length, dtype=np.int32).reshape(rows, length)


def both_forms(make, vocabulary, key):
    plain, placed = (make(in_place=form).with_vocabulary(vocabulary) for form in (False, True))
    raw = text(plain.raw_length(LENGTH))
    return [objective(raw, objectives.RowKeys(key, np.arange(6)), LENGTH) for objective in (plain, placed)]


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
@settings(max_examples=15)
@given(key=st.integers(0, 2**31))
def test_the_same_is_predicted_by_the_token_before_it_at_its_distance(make, vocabulary, key):
    plain, placed = both_forms(make, vocabulary, key)
    batch_lib.check_batch(placed)
    for name in plain.keys() - {batch_lib.INPUT_TOKENS, batch_lib.POSITIONS}:
        np.testing.assert_array_equal(plain[name], placed[name])
    fed, positions = placed[batch_lib.INPUT_TOKENS], placed[batch_lib.POSITIONS]
    targets, weights = placed[batch_lib.TARGET_TOKENS], placed[batch_lib.LOSS_WEIGHTS]
    of_text = (targets >= 100_000) & (weights > 0)
    assert of_text.any()
    # A row of the text is one run of numbers: what is predicted follows from what is fed.
    np.testing.assert_array_equal((targets - fed)[of_text & (fed >= 100_000)], 1)
    assert (fed[of_text] >= 100_000).mean() > 0.9
    real = placed.get(batch_lib.SEGMENT_IDS, np.ones_like(fed)) > 0
    for row, segment in zip(*np.nonzero(real & (fed >= 100_000)), strict=True):
        # Positions and text run in step: all tokens of a text have one distance to their positions.
        mine = real[row] & (fed[row] >= 100_000)
        if batch_lib.SEGMENT_IDS in placed:
            mine &= placed[batch_lib.SEGMENT_IDS][row] == placed[batch_lib.SEGMENT_IDS][row, segment]
        assert len(set((fed[row] - positions[row])[mine].tolist())) == 1


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_sentinels_of_the_inputs_stand_where_their_spans_begin_and_none_is_fed_behind(make, vocabulary):
    plain, placed = both_forms(make, vocabulary, 3)
    sentinels = sentinel_ids(vocabulary)
    prefix = placed[batch_lib.PREFIX] == 1
    fed, positions = placed[batch_lib.INPUT_TOKENS], placed[batch_lib.POSITIONS]
    is_hole = np.isin(fed, sentinels)
    np.testing.assert_array_equal(is_hole, np.isin(plain[batch_lib.INPUT_TOKENS], sentinels) & prefix)
    rows, holes = np.nonzero(is_hole)
    np.testing.assert_array_equal(positions[rows, holes], positions[rows, holes - 1] + 1)


def test_documents_are_fed_as_windows_are(vocabulary):
    objective = objectives.SpanCorruption(mode_tokens=True, in_place=True).with_vocabulary(vocabulary)
    piece = objectives.Piece(text(50, 1)[0], previous=vocabulary.eod_id)
    example = objective.example(piece, 0, np.random.Generator(np.random.Philox(4)))
    plain = objectives.SpanCorruption(mode_tokens=True).with_vocabulary(vocabulary)
    other = plain.example(piece, 0, np.random.Generator(np.random.Philox(4)))
    np.testing.assert_array_equal(example.targets, other.targets)
    is_text = example.inputs >= 100_000
    np.testing.assert_array_equal(example.positions[is_text], example.inputs[is_text] - 100_000 + 1)
    assert example.inputs[0] == vocabulary.mode_token_id("[NLU]")
    assert example.positions[0] == 0


def test_rows_of_documents_deliver_the_positions(vocabulary):
    objective = objectives.SpanCorruption(in_place=True).with_vocabulary(vocabulary)
    generator = np.random.Generator(np.random.Philox(0))
    pieces = [objectives.Piece(row, previous=vocabulary.eod_id) for row in text(20, 2)]
    examples = [objective.example(piece, 0, generator) for piece in pieces]
    fields = assemble([examples], LENGTH, attend_across_documents=False, with_prefix=True)
    end = len(examples[0].inputs)
    np.testing.assert_array_equal(fields[batch_lib.POSITIONS][0, :end], examples[0].positions)
    np.testing.assert_array_equal(fields[batch_lib.POSITIONS][0, end : 2 * end], examples[1].positions)
    for found, example in zip(objectives.examples_of(fields, 0), examples, strict=True):
        np.testing.assert_array_equal(found.positions, example.positions)


def test_the_form_is_part_of_the_name_where_it_is_not_the_usual_one():
    assert "in_place" not in objectives.Ul2r().name
    assert "in_place=True" in objectives.Ul2r(in_place=True).name
