import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives import Piece, RowKeys, Supervised


@given(st.integers(0, 8), st.integers(1, 8), st.booleans())
def test_the_targets_alone_are_learnt(visible, inputs, targets, bidirectional):
    objective = Supervised(prefix_bidirectional=bidirectional)
    tokens = np.arange(10, 10 + inputs + targets, dtype=np.int32)
    example = objective.example(Piece(tokens, previous=1, target_start=inputs), 0, np.random.default_rng(0))
    assert example.inputs.tolist() == [1, *tokens[:-1]]
    assert example.targets.tolist() == tokens.tolist()
    assert example.weights.tolist() == [0.0] * inputs + [1.0] * targets
    assert objective.packed_length(np.array([len(tokens)]), np.array([0])).tolist() == [len(example.inputs)]
    assert objective.has_prefix == bidirectional
    prefix = np.arange(len(tokens)) < example.prefix
    mask = visible({"decoder_input_tokens": example.inputs[None], "decoder_causal_attention": prefix[None]}, 0)
    if bidirectional:
        # The inputs and the token before them see one another.
        assert mask[: inputs + 1, : inputs + 1].all()
    else:
        assert example.prefix == 0
    for position in range(inputs, len(tokens)):
        assert example.targets[position] not in example.inputs[mask[position]]


def test_windows_are_refused():
    objective = Supervised()
    with pytest.raises(UserError, match="whole documents"):
        objective.raw_length(16)
    with pytest.raises(UserError, match="whole documents"):
        objective(np.zeros((1, 16), np.int32), RowKeys(0, np.arange(1)), 16)
    assert not objective.splits_documents
    assert objective.longest_piece(16) == 16


def test_a_document_without_targets_is_refused():
    with pytest.raises(ValueError, match="target_start 2 of a document of 2"):
        Supervised().example(Piece(np.array([4, 1], np.int32), 1, target_start=2), 0, np.random.default_rng(0))
