"""The choice of experts against numpy, and what is asked of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.layers.routing import balance_loss, check_router, choose, router_z_loss

B, L, E = 3, 11, 6
LOGITS = np.random.default_rng(0).standard_normal((B, L, E)).astype(np.float32)
IS_TOKEN = np.arange(L) < np.array([[11], [7], [0]])


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def chosen(k, is_token=None, router="softmax_topk", normalize=False, scale=1.0, logits=LOGITS):
    return choose(jnp.asarray(logits), k, is_token, router=router, normalize=normalize, scale=scale)


@pytest.mark.parametrize("k", [1, 2, 6])
@pytest.mark.parametrize(
    ("router", "normalize"), [("softmax_topk", False), ("softmax_topk", True), ("topk_softmax", False)]
)
def test_experts_and_gates(k, router, normalize):
    choice = chosen(k, router=router, normalize=normalize, scale=2.0)
    expected = np.argsort(-LOGITS, axis=-1)[..., :k]
    np.testing.assert_array_equal(choice.expert, expected)
    wide = LOGITS.astype(np.float64)
    gates = np.take_along_axis(softmax(wide), expected, -1)
    if router == "topk_softmax":
        gates = softmax(np.take_along_axis(wide, expected, -1))
    elif normalize:
        gates = gates / gates.sum(-1, keepdims=True)
    np.testing.assert_allclose(choice.gate, 2.0 * gates, rtol=1e-5)
    np.testing.assert_array_equal(choice.chosen, np.eye(E)[expected].sum(-2))


def test_normalized_scores_are_a_softmax_over_the_chosen():
    first, second = chosen(2, normalize=True), chosen(2, router="topk_softmax")
    np.testing.assert_allclose(first.gate, second.gate, rtol=1e-6)


def test_a_single_normalized_gate_is_one_to_the_bit():
    logits = 30 * LOGITS
    for options in ({"normalize": True}, {"router": "topk_softmax"}):
        np.testing.assert_array_equal(chosen(1, logits=logits, **options).gate, 1.0)


def test_equal_scores_go_to_the_first_experts():
    choice = chosen(3, logits=np.zeros((1, 2, E), np.float32))
    np.testing.assert_array_equal(choice.expert, np.broadcast_to(np.arange(3), (1, 2, 3)))


def test_padding_goes_to_no_expert():
    choice = chosen(2, IS_TOKEN)
    assert (np.asarray(choice.expert)[~IS_TOKEN] == E).all()
    np.testing.assert_array_equal(np.asarray(choice.expert)[IS_TOKEN], np.asarray(chosen(2).expert)[IS_TOKEN])


@pytest.mark.parametrize("k", [1, 2])
def test_balance_loss_of_each_row(k):
    got = balance_loss(chosen(k, IS_TOKEN), IS_TOKEN)
    scores = softmax(LOGITS.astype(np.float64))
    for row, length in enumerate(IS_TOKEN.sum(-1)):
        picks = np.argsort(-LOGITS[row, :length], axis=-1)[:, :k]
        share = np.bincount(picks.ravel(), minlength=E) / max(length * k, 1)
        mean = scores[row, :length].sum(0) / max(length, 1)
        assert float(got[row]) == pytest.approx(E * (share * mean).sum(), rel=1e-5)


def test_balance_loss_is_one_at_balance_and_the_number_of_experts_at_collapse():
    even = np.zeros((1, E, E), np.float32) + 1e-3 * np.eye(E, dtype=np.float32)
    assert float(balance_loss(chosen(1, logits=even), None)[0]) == pytest.approx(1.0, rel=1e-3)
    collapsed = np.zeros((1, L, E), np.float32)
    collapsed[..., 2] = 50
    assert float(balance_loss(chosen(1, logits=collapsed), None)[0]) == pytest.approx(E, rel=1e-5)


def test_gradient_of_the_balance_loss_takes_from_the_experts_that_are_chosen_most():
    def loss(logits):
        return jnp.sum(balance_loss(chosen(1, logits=logits), None))

    logits = np.zeros((1, L, E), np.float32)
    logits[..., 2] = 0.1
    gradient = jax.grad(loss)(logits).sum((0, 1))
    assert gradient[2] > 0
    assert (np.delete(gradient, 2) < 0).all()
    # Of the product's two factors only the mean of the scores is differentiable.
    scores = softmax(logits.astype(np.float64))[0]
    by_hand = E * scores * (np.eye(E)[2] - scores[:, 2:3]) / L
    np.testing.assert_allclose(jax.grad(loss)(logits)[0], by_hand, rtol=1e-4, atol=1e-7)


def test_router_z_loss_of_each_row():
    squares = np.log(np.exp(LOGITS.astype(np.float64)).sum(-1)) ** 2
    np.testing.assert_allclose(router_z_loss(LOGITS, None), squares.mean(-1), rtol=1e-5)
    expected = [squares[row, :length].sum() / max(length, 1) for row, length in enumerate(IS_TOKEN.sum(-1))]
    np.testing.assert_allclose(router_z_loss(LOGITS, IS_TOKEN), expected, rtol=1e-5)


def test_the_name_of_a_router():
    with pytest.raises(UserError, match=r"unknown router 'softmax_top'.*softmax_topk"):
        check_router("softmax_top")
