"""Look-ups and the sums of their gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from t5x_scale.layers.ops.lookup import lookup

AXES = ("vocab", "embed")


def test_rows_and_gradient_equal_the_plain_formula():
    table = jax.random.normal(jax.random.key(0), (7, 3))
    indices = jnp.array([[0, 6, 2], [2, 2, 5]])
    weight = jax.random.normal(jax.random.key(1), (2, 3, 3))
    value, grad = jax.value_and_grad(lambda t: jnp.sum(lookup(t, indices, AXES, jnp.float32) * weight))(table)
    expected, expected_grad = jax.value_and_grad(lambda t: jnp.sum(t[indices] * weight))(table)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-6)


def test_a_common_token_is_counted_in_full_in_bfloat16():
    table = jnp.zeros((4, 2), jnp.float32)
    indices = jnp.zeros((8, 1000), jnp.int32)
    grad = jax.grad(lambda t: jnp.sum(lookup(t, indices, AXES, jnp.bfloat16).astype(jnp.float32)))(table)
    np.testing.assert_array_equal(grad, [[8000, 8000], [0, 0], [0, 0], [0, 0]])
    assert grad.dtype == table.dtype
