"""Remat by name: every choice gives the same gradients, and keeps what it names, where it says."""

import functools
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError
from t5x_scale.layers.tensor_names import TENSOR_NAMES
from t5x_scale.models.blocks import ParallelBlock, SerialBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder
from t5x_scale.models.interface import DecoderModel
from t5x_scale.models.remat import REMAT_POLICIES, Remat, check_remat

LAYERS, ROWS, LENGTH, EMBED, MLP, HEADS, SIZE = 3, 2, 5, 16, 28, 2, 6
# Numbers a token. Attention keeps its normaliser with what it gives.
FEATURES = {
    "residual": [EMBED],
    "query": [HEADS * SIZE],
    "key": [SIZE],
    "value": [SIZE],
    "context": [HEADS, HEADS * SIZE],
    "attention_out": [EMBED],
    "mlp_gate": [MLP],
    "mlp_up": [MLP],
    "mlp_hidden": [MLP],
    "mlp_out": [],  # No gradient needs it.
}
CHOICES = [
    *REMAT_POLICIES,
    Remat(),
    Remat(save=("query", "key", "value", "attention_out", "mlp_out")),
    Remat(offload=("residual", "query")),
    Remat(save=["mlp_hidden"], offload=["residual", "context"]),
]


def make_model(remat, block=SerialBlock):
    config = ModelConfig(LAYERS, EMBED, MLP, HEADS, 1, SIZE, vocab_size=32, dtype="float32")
    return DecoderModel(config, functools.partial(Decoder, block=block, remat=remat))


def loss(model, params):
    tokens = np.random.default_rng(1).integers(0, 32, (ROWS, LENGTH)).astype(np.int32)
    return jnp.sum(jnp.sin(model.hidden(params, {fields.INPUT_TOKENS: tokens}).hidden))


@pytest.fixture(scope="module")
def expected():
    model = make_model("none")
    params = jax.jit(model.init)(jax.random.key(0))
    return params, jax.jit(jax.grad(functools.partial(loss, model)))(params)


@pytest.mark.parametrize("remat", CHOICES, ids=str)
def test_gradients_do_not_depend_on_it(remat, expected):
    params, wanted = expected
    found = jax.jit(jax.grad(functools.partial(loss, make_model(remat))))(params)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert jnp.allclose(got, want, rtol=1e-4, atol=1e-5)


def saved(remat, params, block=SerialBlock):
    """What the forward loop over layers stacks for the backward one: (numbers a token, whether on the host)."""
    jaxpr = jax.make_jaxpr(jax.grad(functools.partial(loss, make_model(remat, block))))(params)
    forward = next(equation for equation in jaxpr.eqns if equation.primitive.name == "scan")
    stacked = [variable.aval for variable in forward.outvars[forward.params["num_carry"] :]]
    return sorted((aval.size // (LAYERS * ROWS * LENGTH), "host" in str(aval.memory_space).lower()) for aval in stacked)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("kind", ["save", "offload"])
def test_a_named_tensor_is_kept_where_it_is_said(name, kind, expected):
    params, _ = expected
    kept = [(numbers, kind == "offload") for numbers in FEATURES[name]]
    # The input of the layer, unless it is what was offloaded, and nothing else.
    residual = [] if name == "residual" else [(EMBED, False)]
    assert saved(Remat(**{kind: (name,)}), params) == sorted(kept + residual)


def test_full_keeps_the_input_alone(expected):
    params, _ = expected
    assert saved("full", params) == saved(Remat(), params) == [(EMBED, False)]


def test_attention_keeps_what_attention_needs(expected):
    params, _ = expected
    wanted = [FEATURES[name] for name in ("residual", "query", "key", "value", "context")]
    assert [numbers for numbers, _ in saved("attention", params)] == sorted(itertools.chain(*wanted))


def test_minimal_keeps_products_with_parameters_and_what_attention_gives(expected):
    params, _ = expected
    wanted = [FEATURES[name] for name in ("residual", "query", "key", "value", "context", "mlp_gate", "mlp_up")]
    # Products are kept as they come, before positions are turned into them.
    assert [numbers for numbers, _ in saved("minimal", params)] == sorted(itertools.chain(*wanted, [EMBED]))


def test_every_name_is_given_by_both_kinds_of_block(expected):
    params, _ = expected
    text = str(jax.make_jaxpr(functools.partial(loss, make_model("full")))(params))
    # Experts are named by the layer that has them.
    assert (
        {name for name in TENSOR_NAMES if f"name={name}]" in text}
        == set(FEATURES)
        == {*TENSOR_NAMES} - {"grouped_matmul"}
    )
    model = make_model("full", ParallelBlock)
    text = str(jax.make_jaxpr(functools.partial(loss, model))(model.init(jax.random.key(0))))
    assert all(f"name={name}]" in text for name in FEATURES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save": ("querry",)}, r"Remat.save: a layer has no tensor 'querry'.*did you mean 'query'"),
        ({"offload": ("logits",)}, r"Remat.offload: a layer has no tensor 'logits'; they are residual, query"),
        ({"save": "query"}, r"Remat.save is 'query'; give a tuple of names"),
        ({"save": ("query",), "offload": ("query",)}, r"query cannot be both saved and offloaded"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Remat(**options)


def test_an_unknown_word():
    with pytest.raises(UserError, match=r"unknown policy 'ful' \(did you mean 'full'"):
        check_remat("ful")
    with pytest.raises(UserError, match=r"unknown policy 'everything'; known are none, dots"):
        check_remat("everything")


def test_it_is_no_part_of_the_architecture():
    assert make_model("none").architecture() == make_model(Remat(save=("query",))).architecture()
