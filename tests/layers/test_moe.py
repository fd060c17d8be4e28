"""Experts against numpy, and identical experts against the one feed-forward layer they are copies of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten
from t5x_scale.layers.masks import Mask
from t5x_scale.layers.mlp import GatedMlp, Mlp
from t5x_scale.layers.moe import LOSSES, MoeMlp

D, F, E, B, L = 8, 12, 4, 2, 13
X = np.random.default_rng(0).standard_normal((B, L, D)).astype(np.float32)
PADDED = Mask(query_index=jnp.where(jnp.arange(L) < jnp.array([[L], [5]]), jnp.arange(L), -1))


def make(k=2, **options):
    return MoeMlp(D, F, E, k, **options)


def init(layer, seed=0):
    """Parameters of some size: gates that differ, experts that differ."""
    boxed = jax.jit(layer.init)(jax.random.key(seed), X)["params"]
    params = jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda node: hasattr(node, "names"))
    params["router"]["kernel"] = 40 * params["router"]["kernel"]
    return params


def apply(layer, params, x, mask=Mask()):
    """The output and what the layer asks to be added to the loss."""
    y, noted = jax.jit(functools.partial(layer.apply, mutable=[LOSSES]))({"params": params}, x, mask)
    return y, noted.get(LOSSES, {})


def by_hand(params, x, k, gated=True):
    """One token after the other, in float64."""
    x = x.astype(np.float64).reshape(-1, D)
    kernels = {name: np.asarray(part["kernel"], np.float64) for name, part in params["experts"].items()}
    out = np.zeros_like(x)
    for t, token in enumerate(x):
        logits = token @ np.asarray(params["router"]["kernel"], np.float64)
        best = np.argsort(-logits)[:k]
        gates = np.exp(logits[best]) / np.exp(logits[best]).sum()
        for e, gate in zip(best, gates, strict=True):
            silu = lambda h: h / (1 + np.exp(-h))  # noqa: E731
            if gated:
                h = silu(token @ kernels["wi_0"][e]) * (token @ kernels["wi_1"][e])
            else:
                h = silu(token @ kernels["wi"][e])
            out[t] += gate * (h @ kernels["wo"][e])
    return out.reshape(X.shape)


def every_expert_sees_every_token(params, x, k):
    """The plain formula, whose gradients automatic differentiation makes."""
    logits = x @ params["router"]["kernel"]
    values, numbers = jax.lax.top_k(logits, k)
    gates = jnp.sum(jax.nn.softmax(values)[..., None] * jax.nn.one_hot(numbers, E), axis=-2)
    kernels = {name: part["kernel"] for name, part in params["experts"].items()}
    h = jax.nn.silu(jnp.einsum("bld,edf->blef", x, kernels["wi_0"])) * jnp.einsum("bld,edf->blef", x, kernels["wi_1"])
    return jnp.einsum("blef,efd,ble->bld", h, kernels["wo"], gates)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("router", ["softmax_topk", "topk_softmax"])
def test_equal_to_one_token_after_the_other(k, gated, router):
    layer = make(k, gated=gated, router=router)
    params = init(layer)
    got = jax.jit(layer.apply)({"params": params}, X)
    np.testing.assert_allclose(got, by_hand(params, X, k, gated), rtol=1e-4, atol=1e-5)


def test_gradients_equal_those_of_the_plain_formula():
    layer = make()
    params, weight = init(layer), np.random.default_rng(1).standard_normal(X.shape)

    def loss(function, params, x):
        return jnp.sum(weight * function(params, x))

    gradient = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
    got = gradient(lambda params, x: layer.apply({"params": params}, x), params, X)
    expected = gradient(functools.partial(every_expert_sees_every_token, k=2), params, X)
    for path, leaf in flatten({"params": expected[0], "x": expected[1]}).items():
        found = flatten({"params": got[0], "x": got[1]})[path]
        np.testing.assert_allclose(found, leaf, rtol=1e-4, atol=1e-4, err_msg=path)
        assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("gates", [{}, {"router": "topk_softmax"}, {"normalize_gates": False, "gate_scale": "sum"}])
def test_identical_experts_are_the_dense_layer(gated, k, gates):
    if gates.get("gate_scale"):
        # A router that prefers nobody: each gate is 1/E, and the scale makes them sum to 1.
        gates = {**gates, "gate_scale": E / k}
    layer, dense = (
        make(k, gated=gated, **gates),
        (GatedMlp if gated else functools.partial(Mlp, activation="silu"))(D, F),
    )
    params = init(layer)
    if "gate_scale" in gates:
        params["router"]["kernel"] = 0 * params["router"]["kernel"]
    one = {name: {"kernel": part["kernel"][0]} for name, part in params["experts"].items()}
    params["experts"] = jax.tree.map(lambda leaf: jnp.stack([leaf] * E), one)
    got, expected = jax.jit(layer.apply)({"params": params}, X), jax.jit(dense.apply)({"params": one}, X)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    if k == 1:
        np.testing.assert_array_equal(got, expected)


def test_parameters_and_their_axes():
    boxed = jax.eval_shape(make().init, jax.random.key(0), X)["params"]
    found = {"/".join(path): (box.value.shape, box.names) for path, box in _boxes(boxed)}
    assert found == {
        "router/kernel": ((D, E), ("embed", "expert")),
        "experts/wi_0/kernel": ((E, D, F), ("expert", "embed", "mlp")),
        "experts/wi_1/kernel": ((E, D, F), ("expert", "embed", "mlp")),
        "experts/wo/kernel": ((E, F, D), ("expert", "mlp", "embed")),
    }
    plain = jax.eval_shape(make(gated=False).init, jax.random.key(0), X)["params"]
    assert set(plain["experts"]) == {"wi", "wo"}


def _boxes(tree, path=()):
    for name, node in tree.items():
        yield from [((*path, name), node)] if hasattr(node, "names") else _boxes(node, (*path, name))


def test_experts_begin_apart_and_with_the_fan_in_of_one():
    params = jax.jit(MoeMlp(64, 256, 3, 1).init)(jax.random.key(0), np.zeros((1, 1, 64)))["params"]["experts"]
    for name, fan_in in (("wi_0", 64), ("wi_1", 64), ("wo", 256)):
        kernel = np.asarray(params[name]["kernel"].value)
        np.testing.assert_allclose(kernel.std(axis=(1, 2)), fan_in**-0.5, rtol=0.03)
        assert np.abs(np.corrcoef(kernel.reshape(3, -1)) - np.eye(3)).max() < 0.05


def test_padding_costs_nothing_and_moves_nothing():
    layer = make()
    params, other = init(layer), X.copy()
    other[1, 5:] = 1e4
    got, noted = apply(layer, params, other, PADDED)
    expected, _ = apply(layer, params, X)
    np.testing.assert_array_equal(np.asarray(got)[1, 5:], 0)
    np.testing.assert_allclose(got[1, :5], expected[1, :5], atol=1e-6)
    _, alone = apply(layer, params, X[1:, :5])
    for name, loss in noted.items():
        np.testing.assert_allclose(loss[1], alone[name][0], rtol=1e-5, err_msg=name)


def test_a_token_gets_the_same_whatever_stands_beside_it():
    layer = make()
    params = init(layer)
    whole, _ = apply(layer, params, X)
    np.testing.assert_allclose(apply(layer, params, X[1:, 4:5])[0], whole[1:, 4:5], atol=1e-6)


def test_all_tokens_may_choose_the_same_experts():
    layer = make()
    params = init(layer)
    x = np.abs(X)
    params["router"]["kernel"] = np.zeros((D, E), np.float32) + np.array([0, 5, 0, 9], np.float32)
    np.testing.assert_allclose(apply(layer, params, x)[0], by_hand(params, x, 2), rtol=1e-4, atol=1e-5)


def test_losses_are_noted_with_their_coefficients_where_asked_for():
    params = init(make())
    _, both = apply(make(), params, X)
    assert {name: loss.shape for name, loss in both.items()} == {"balance_loss": (B,), "router_z_loss": (B,)}
    _, doubled = apply(make(balance_loss=2e-2, router_z_loss=0), params, X)
    np.testing.assert_allclose(doubled.pop("balance_loss"), 2 * both["balance_loss"], rtol=1e-6)
    assert not doubled
    # Nobody asks, nothing is noted.
    assert jax.eval_shape(make().apply, {"params": params}, X).shape == X.shape


def test_bfloat16_products_and_a_float32_router():
    layer = make(dtype=jnp.bfloat16)
    params, x = init(layer), jnp.asarray(X, jnp.bfloat16)
    # Two experts whose scores differ by less than bfloat16 can say at their size.
    params["router"]["kernel"] = jnp.zeros((D, E)).at[0, 1].set(1.0).at[0, 2].set(1.0 + 2**-12).at[0].add(8.0)
    y, noted = apply(layer, params, jnp.abs(x) + 1)
    assert y.dtype == jnp.bfloat16
    assert all(loss.dtype == jnp.float32 for loss in noted.values())
    one = make(1, dtype=jnp.bfloat16)
    for kernel in params["experts"].values():
        kernel["kernel"] = kernel["kernel"].at[2].set(0.0)
    assert not np.asarray(apply(one, params, jnp.abs(x) + 1)[0], np.float32).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"router": "topk"}, "unknown router 'topk'"), ({"activation": "sillu"}, "unknown activation 'sillu'.*silu")],
)
def test_unknown_names(options, message):
    with pytest.raises(UserError, match=message):
        make(**options).init(jax.random.key(0), X)
