"""Frequencies of RoPE against `transformers`' own, in float32."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from t5x_scale.layers.rope_scaling import LinearScaling, Llama3Scaling, NtkScaling, YarnScaling, plain_frequencies

ORIGINAL = 1024
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": ORIGINAL}
YARN = {"original_max_position_embeddings": ORIGINAL}


def theirs(rope, head_dim, base, fraction=1.0, length=None):
    """Frequencies and the factor on cosines and sines that a configuration gives."""
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_theta": base, "partial_rotary_factor": fraction, **rope},
    )
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"), seq_len=length)
    return frequencies.numpy(), amplitude


@pytest.mark.parametrize(("head_dim", "base", "fraction"), [(128, 500000.0, 1.0), (80, 10000.0, 0.25), (6, 100.0, 1.0)])
@pytest.mark.parametrize(
    ("ours", "rope"),
    [
        (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}),
        (Llama3Scaling(8.0, ORIGINAL), {"rope_type": "llama3", "factor": 8.0, **LLAMA3}),
        (Llama3Scaling(32.0, ORIGINAL, 2.0, 5.0),
         {"rope_type": "llama3", "factor": 32.0, **LLAMA3, "low_freq_factor": 2.0, "high_freq_factor": 5.0}),
        (YarnScaling(8.0, ORIGINAL), {"rope_type": "yarn", "factor": 8.0, **YARN}),
        (YarnScaling(0.5, ORIGINAL), {"rope_type": "yarn", "factor": 0.5, **YARN}),
        (YarnScaling(8.0, ORIGINAL, attention_factor=1.25),
         {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.25, **YARN}),
        (YarnScaling(8.0, ORIGINAL, 20.0, 2.0, truncate=False),
         {"rope_type": "yarn", "factor": 8.0, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False, **YARN}),
    ],
)  # fmt: skip
def test_scalings(ours, rope, head_dim, base, fraction):
    frequencies, amplitude = theirs(rope, head_dim, base, fraction)
    np.testing.assert_allclose(ours.frequencies(base, int(head_dim * fraction)), frequencies, rtol=1e-6)
    assert ours.amplitude() == pytest.approx(amplitude, rel=1e-12)


@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_static_ntk_is_dynamic_ntk_at_one_length(factor):
    """Theirs grows with the length seen; it has our base where `factor * length / trained - (factor - 1) = factor`."""
    length = ORIGINAL * (2 * factor - 1) / factor
    frequencies, amplitude = theirs({"rope_type": "dynamic", "factor": factor}, 64, 10000.0, length=length)
    np.testing.assert_allclose(NtkScaling(factor).frequencies(10000.0, 64), frequencies, rtol=1e-6)
    assert amplitude == NtkScaling(factor).amplitude() == 1.0


def test_plain():
    frequencies, _ = theirs({"rope_type": "linear", "factor": 1.0}, 64, 10000.0)
    np.testing.assert_allclose(plain_frequencies(10000.0, 64), frequencies, rtol=1e-6)
