"""Rows in another order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.layers.ops.permute import permute


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
