"""AdamW and Lion against optax and against a few lines of numpy."""

import jax
import numpy as np
import optax
import pytest

from t5x_scale.core.trees import flatten, map_with_path
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.interface import LeafOptions
from t5x_scale.optim.lion import Lion
from t5x_scale.optim.schedules import Cosine

SCHEDULE = Cosine(peak=0.05, total_steps=20, warmup_steps=2)


def train(tx, params, grads):
    @jax.jit
    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    for g in grads:
        params, state = step(params, state, g)
    return flatten(params)


def of_rank_two(trees):
    return map_with_path(lambda path, names: len([n for n in names if n != "layers"]) >= 2, trees.axes)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AdamW(SCHEDULE, weight_decay=0.1), lambda mask: optax.adamw(SCHEDULE, 0.9, 0.95, weight_decay=0.1, mask=mask)),
        (Lion(SCHEDULE, weight_decay=0.5), lambda mask: optax.lion(SCHEDULE, 0.9, 0.99, weight_decay=0.5, mask=mask)),
    ],
    ids=["adamw", "lion"],
)
def test_equals_optax(trees, ours, theirs):
    params, grads = trees.random(0), [trees.random(seed) for seed in range(1, 11)]
    mine, _ = trees.run(ours, params, trees.axes, grads)
    expected = train(theirs(of_rank_two(trees)), params, grads)
    for path, value in flatten(mine).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-6, atol=1e-7, err_msg=path)


def numpy_adamw(p, grads, decay):
    p = np.asarray(p, np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for k, g in enumerate(grads, start=1):
        lr, g = float(SCHEDULE(k - 1)), np.asarray(g, np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        p = p - lr * (m / (1 - 0.9**k) / (np.sqrt(v / (1 - 0.95**k)) + 1e-8) + decay * p)
    return p


@pytest.mark.parametrize("min_rank", [0, 2])
def test_adamw_equals_numpy_and_spares_vectors_from_decay(trees, min_rank):
    params, grads = trees.random(0), [trees.random(seed) for seed in range(1, 11)]
    mine, _ = trees.run(AdamW(SCHEDULE, weight_decay=2.0, decay_min_rank=min_rank), params, trees.axes, grads)
    flat_grads, masks = [flatten(g) for g in grads], flatten(of_rank_two(trees))
    for path, value in flatten(mine).items():
        decay = 2.0 if masks[path] or min_rank == 0 else 0.0
        expected = numpy_adamw(flatten(params)[path], [g[path] for g in flat_grads], decay)
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6 * np.abs(expected).max(), err_msg=path)


def test_options_change_rate_and_decay_of_one_parameter(trees):
    params, grads = trees.random(0), [trees.random(seed) for seed in range(1, 4)]
    path = "decoder/layers/pre_norm/scale"
    options = {path: LeafOptions(lr_multiplier=0.1, decay=True)}
    changed = flatten(trees.run(AdamW(SCHEDULE, weight_decay=1.0), params, trees.axes, grads, options)[0])
    plain = flatten(trees.run(AdamW(SCHEDULE, weight_decay=1.0), params, trees.axes, grads)[0])
    decayed = flatten(trees.run(AdamW(SCHEDULE, weight_decay=1.0, decay_min_rank=0), params, trees.axes, grads)[0])
    start = flatten(params)[path]
    # A tenth of each step, but for the decay's share that itself decays: second order in the rate.
    np.testing.assert_allclose(changed[path] - start, 0.1 * (decayed[path] - start), atol=5e-3)
    assert np.abs(changed[path] - start).max() > 5e-3
    for other in plain.keys() - {path}:
        np.testing.assert_array_equal(changed[other], plain[other])
