"""What the model files say about initial values: the standard deviation of every kernel and table."""

import math
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from gin_files import load_program

from t5x_scale.core.trees import flatten

SMALL = {"ModelConfig__vocab_size": 16}
TWO_LAYERS = {f"ModelConfig__{name}": 2 for name in ("num_layers", "num_heads", "num_kv_heads", "head_dim")}
TWO_LAYERS |= {"ModelConfig__embed_dim": 16, "ModelConfig__mlp_dim": 8, **SMALL}
GPT3 = {"NUM_LAYERS": 3, "ModelConfig__embed_dim": 128, "ModelConfig__mlp_dim": 512, **SMALL}


def _values(model, monkeypatch):
    """The parameters with every draw from N(0, 1) replaced by 1: what remains is the standard deviation."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: jax.numpy.ones(shape, dtype))
    return {path: np.asarray(leaf) for path, leaf in flatten(jax.jit(model.init)(jax.random.key(0))).items()}


@pytest.mark.parametrize(
    ("name", "settings", "usual", "output", "table"),
    [
        ("palm/tiny", SMALL, 256**-0.5, None, 1.0),
        ("llama/tiny", SMALL, 0.02, 0.02, 0.02),
        ("gpt3/125m", GPT3, 0.02, 0.02 / math.sqrt(6), 0.02),
        ("pythia/14m", SMALL, math.sqrt(0.4 / 128), 2 / (6 * math.sqrt(128)), math.sqrt(0.4 / 128)),
        ("gopher/44m", SMALL, 512**-0.5, None, 512**-0.5),
        ("gemma2/2b", TWO_LAYERS, 0.02, 0.02, 0.02),
        ("mixtral/8x7b", TWO_LAYERS, 0.02, 0.02, 0.02),
    ],
)
def test_deviations(name, settings, usual, output, table, monkeypatch):
    values = _values(load_program(f"gin/models/{name}.gin", **settings).model, monkeypatch)
    for path, value in values.items():
        leaf = path.rsplit("/", 1)[1]
        if leaf in ("bias", "scale"):
            # Gemma stores the difference of a scale from 1.
            expected = 0.0 if leaf == "bias" or name.startswith("gemma") else 1.0
        elif leaf.endswith("_bias"):
            expected = 0.02
        elif path.endswith(("/out/kernel", "/wo/kernel")):
            # Without a rule of its own the matrix is drawn by its number of inputs.
            expected = output or math.prod(value.shape[1:-1]) ** -0.5
        else:
            expected = table if leaf == "embedding" else usual
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("name", "scale"), [("palm/tiny", 1 / 16), ("gopher/44m", 1.0), ("gpt3/125m", 1.0), ("pythia/14m", 1.0)]
)
def test_scale_of_the_logits(name, scale):
    model = load_program(f"gin/models/{name}.gin").model
    assert model.head(model.abstract_params()).scale == scale
