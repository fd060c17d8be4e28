"""Rows in another order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.layers.ops.permute import move, permute


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_rows_and_gradient(rows):
    rng = np.random.default_rng(rows)
    x, weight = (rng.standard_normal((rows, 3)).astype(np.float32) for _ in range(2))
    order = rng.permutation(rows)
    back = np.argsort(order)
    y, pull_back = jax.vjp(lambda x: permute(x, order, back), x)
    np.testing.assert_array_equal(y, x[order])
    expected = np.zeros_like(x)
    expected[order] = weight
    np.testing.assert_array_equal(pull_back(jnp.asarray(weight))[0], expected)
    np.testing.assert_array_equal(permute(y, back, order), x)


def test_rows_that_move_and_those_that_stay_behind():
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    # Rows 3 and 0 come to places 0 and 2 of four; nothing comes to the others.
    source, target = np.array([3, 5, 0, 5]), np.array([2, 4, 4, 0, 4])
    y, back = jax.vjp(lambda x: move(x, source, target), x)
    np.testing.assert_array_equal(y, [x[3], [0, 0], x[0], [0, 0]])
    (gradient,) = back(jnp.arange(8, dtype=jnp.float32).reshape(4, 2))
    np.testing.assert_array_equal(gradient, [[4, 5], [0, 0], [0, 0], [0, 1], [0, 0]])
