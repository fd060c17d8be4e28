"""Muon: which parameters are matrices, that stacks are taken apart, and that it equals optax's."""

import jax
import numpy as np
import optax
import pytest

from t5x_scale.core.trees import flatten
from t5x_scale.optim.muon import Muon, matrix_dimensions
from t5x_scale.optim.schedules import Constant


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("embed", "mlp"), ((0,), (1,))),
        (("layers", "mlp", "embed"), ((1,), (2,))),
        (("layers", "embed", "heads", "kv"), ((1,), (2, 3))),
        (("layers", "heads", "kv", "embed"), ((1, 2), (3,))),
        (("layers", "expert", "embed", "mlp"), ((2,), (3,))),
        (("vocab", "embed"), None),
        (("embed", "vocab"), None),
        (("layers", "embed"), None),
        (("layers", "embed", "expert"), None),
        (("layers", "heads", "kv"), None),
        ((), None),
    ],
)
def test_matrices_are_found_by_their_axes(names, expected):
    found = matrix_dimensions(names, adam_axes=("vocab",))
    assert (found and tuple(found)) == expected


def test_updates_of_every_matrix_of_a_stack_are_orthogonal_with_the_asked_rms(trees):
    params, grads = trees.random(0), trees.random(1)
    tx = Muon(Constant(1.0), weight_decay=0.0).make(trees.axes)
    updates = flatten(jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(grads, params))
    for path, shape in {
        "decoder/layers/attention/query/kernel": (8, 16),
        "decoder/layers/mlp/wi/kernel": (8, 16),
        "decoder/layers/mlp/experts/wo/kernel": (16, 8),
    }.items():
        for matrix in np.asarray(updates[path]).reshape(-1, *shape):
            singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(16))
            assert 0.4 < singular.min() <= singular.max() < 1.4, path  # Five iterations come this near to 1.


def test_stacked_and_separate_layers_agree(trees):
    params, grads = trees.random(0), [trees.random(seed) for seed in range(1, 4)]
    stacked, state = trees.run(Muon(Constant(0.02)), params, trees.axes, grads)
    separate, _ = trees.run(
        Muon(Constant(0.02)), trees.apart(params), trees.apart(trees.axes), [trees.apart(g) for g in grads]
    )
    stacked = flatten(trees.apart(stacked))
    for path, expected in flatten(separate).items():
        np.testing.assert_allclose(stacked[path], expected, rtol=0, atol=3e-6 * np.abs(expected).max(), err_msg=path)
    assert "token_embedder" in state[0]["adam"].mu
    assert "token_embedder" not in state[0]["muon"][0].mu


def test_equals_optaxs_muon_on_plain_matrices(trees):
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((6, 10)).astype("f")}
    grads = [{"w": rng.standard_normal((6, 10)).astype("f")} for _ in range(3)]
    ours, _ = trees.run(Muon(Constant(0.1), update_rms=None, weight_decay=0.1), params, {"w": ("embed", "mlp")}, grads)
    tx = optax.contrib.muon(0.1, weight_decay=0.1)
    theirs, state = params, tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=0, atol=2e-6)
