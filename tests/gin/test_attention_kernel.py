"""The attention kernel is chosen in gin, reaches the model, and is no part of what a checkpoint's model is."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from gin_files import load_program

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError

TINY = "gin/models/palm/tiny.gin"
BATCH = {fields.INPUT_TOKENS: jnp.asarray(np.random.default_rng(0).integers(1, 200, (2, 24)), jnp.int32)}


def load(**settings):
    """The record of the tiny PaLM, its program as text, and hidden states; gin holds one model at a time."""
    model = load_program(TINY, ModelConfig__dtype="float32", **settings).model
    made = jax.jit(lambda key: model.hidden(model.init(key), BATCH).hidden).trace(jax.random.key(0))
    return model.architecture(), str(made.jaxpr), made.lower().compile()(jax.random.key(0))


def test_a_kernel_changes_neither_record_nor_result():
    record, program, expected = load()
    with_splash, its_program, hidden = load(Attention__implementation="splash")
    assert with_splash == record
    assert "splash" in its_program
    assert "splash" not in program
    np.testing.assert_allclose(hidden, expected, rtol=1e-5, atol=1e-5)


def test_bad_kernels_are_named():
    with pytest.raises(UserError, match=r"Attention.implementation: unknown implementation 'splsh' \(did you mean"):
        load(Attention__implementation="splsh")
    with pytest.raises(UserError, match=r"'cudnn' does not cover this: cuDNN is for GPUs"):
        load(Attention__implementation="cudnn")
