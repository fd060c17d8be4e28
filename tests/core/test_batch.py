"""The schema of batches."""

import numpy as np
import pytest

from t5x_scale.core import batch as fields


def make(**changes):
    batch = {name: np.zeros((2, 3), fields.DTYPES[name]) for name in fields.REQUIRED}
    return {name: value for name, value in {**batch, **changes}.items() if value is not None}


def test_shape_of_a_good_batch():
    assert fields.check_batch(make()) == (2, 3)
    assert fields.check_batch({name: np.zeros((4, 5), dtype) for name, dtype in fields.DTYPES.items()}) == (4, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({fields.LOSS_WEIGHTS: None}, "batch lacks decoder_loss_weights; it has decoder_input_tokens,"),
        ({"decoder_segments": np.zeros((2, 3), np.int32)}, "unknown field 'decoder_segments'; known are"),
        ({fields.TARGET_TOKENS: np.zeros((2, 4), np.int32)}, r"decoder_target_tokens has shape \(2, 4\)"),
        ({fields.TARGET_TOKENS: np.zeros((2, 3), np.int64)}, "decoder_target_tokens has dtype int64, expected int32"),
        ({fields.LOSS_WEIGHTS: np.zeros((2, 3), bool)}, "decoder_loss_weights has dtype bool, expected float32"),
        ({fields.INPUT_TOKENS: np.zeros(3, np.int32)}, r"decoder_input_tokens has shape \(3,\), expected"),
    ],
)
def test_errors_name_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        fields.check_batch(make(**changes))


def test_names_are_seqios():
    assert fields.REQUIRED == ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
    assert set(fields.DTYPES) - set(fields.REQUIRED) == {
        "decoder_segment_ids",
        "decoder_positions",
        "decoder_causal_attention",
    }
