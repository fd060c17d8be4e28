import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core import batch as batch_lib
from t5x_scale.data import objectives


@given(rows=st.integers(1, 5), length=st.integers(1, 20), data=st.data())
def test_causal_lm_shifts_by_one(rows, length, data):
    objective = objectives.CausalLm()
    raw = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(0, 99), min_size=length + 1, max_size=length + 1), min_size=rows, max_size=rows
            )
        ),
        np.int32,
    )
    assert raw.shape[1] == objective.raw_length(length)
    batch = objective(raw, objectives.RowKeys(0, np.arange(rows)), length)
    assert batch_lib.check_batch(batch) == (rows, length)
    np.testing.assert_array_equal(batch[batch_lib.INPUT_TOKENS], raw[:, :length])
    np.testing.assert_array_equal(batch[batch_lib.TARGET_TOKENS], raw[:, 1:])
    # A token with id 0 is a token like any other.
    assert batch[batch_lib.LOSS_WEIGHTS].min() == 1.0


def test_neighbouring_rows_cover_every_target_once():
    objective, length = objectives.CausalLm(), 8
    stream = np.arange(8 * 4 + 1, dtype=np.int32)
    starts = np.arange(4) * objective.stride(length)
    raw = np.stack([stream[s : s + objective.raw_length(length)] for s in starts])
    batch = objective(raw, objectives.RowKeys(0, np.arange(4)), length)
    np.testing.assert_array_equal(batch[batch_lib.TARGET_TOKENS].ravel(), stream[1:])


def test_wrong_window_length():
    with pytest.raises(ValueError, match="needs windows of 9"):
        objectives.CausalLm()(np.zeros((1, 8), np.int32), objectives.RowKeys(0, np.arange(1)), 8)


def test_row_keys_depend_on_seed_and_row_alone():
    def draw(seed, rows, index):
        return objectives.RowKeys(seed, np.array(rows))[index].integers(0, 2**62)

    assert draw(1, [5, 6], 1) == draw(1, [6], 0)
    assert draw(1, [5], 0) != draw(1, [6], 0)
    assert draw(1, [5], 0) != draw(2, [5], 0)
    assert draw(-1, [2**50], 0) == draw(2**64 - 1, [2**50], 0)
    keys = objectives.RowKeys(1, np.arange(3))
    assert len({int(generator.integers(0, 2**62)) for generator in keys}) == len(keys) == 3
    # Asking twice gives the generator at its beginning both times.
    assert keys[0].integers(0, 2**62) == keys[0].integers(0, 2**62)


def test_causal_lm_is_an_objective():
    assert isinstance(objectives.CausalLm(), objectives.Objective)
    assert objectives.CausalLm() == objectives.CausalLm()


def test_example_predicts_every_token_of_a_piece_once():
    piece = objectives.Piece(np.array([5, 6, 1], np.int32), previous=1)
    example = objectives.CausalLm().example(piece, 0, np.random.default_rng(0))
    assert example.inputs.tolist() == [1, 5, 6]
    assert example.targets.tolist() == [5, 6, 1]
    assert example.weights.tolist() == [1, 1, 1]
    assert example.prefix == 0


def test_imports_only_numpy():
    code = (
        "import sys\nimport t5x_scale.data.objectives\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('jax', 'tensorflow', 'flax', 'grain')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
