"""Products in groups, and their gradients, against a loop over groups."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.layers.ops import grouped_matmul as op
from t5x_scale.layers.ops.grouped_matmul import grouped_matmul


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference(x, kernels, sizes, d_y):
    """`y`, `d_x` and `d_kernels` in float64; rows beyond the last group are in none of them."""
    x, kernels, d_y = (array.astype(np.float64) for array in (x, kernels, d_y))
    y, d_x, d_kernels = np.zeros_like(d_y), np.zeros_like(x), np.zeros_like(kernels)
    start = 0
    for group, size in enumerate(sizes):
        rows = slice(start, start + size)
        y[rows], d_x[rows] = x[rows] @ kernels[group], d_y[rows] @ kernels[group].T
        d_kernels[group] = x[rows].T @ d_y[rows]
        start += size
    return y, d_x, d_kernels


@jax.jit
def run(x, kernels, sizes, d_y):
    def product(x, kernels):
        return grouped_matmul(x, kernels, sizes)

    y, pull_back = jax.vjp(product, x, kernels)
    return y, *pull_back(d_y)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.integers(0, 1000))
def test_equal_to_a_loop_over_groups(ends, seed):
    """Of 50 rows, groups of any sizes between none and all."""
    x, kernels, d_y = draw(seed, 50, 5), draw(seed + 1, 4, 5, 3), draw(seed + 2, 50, 3)
    sizes = np.diff(sorted(ends), prepend=0).astype(np.int32)
    for got, expected in zip(run(x, kernels, sizes, d_y), reference(x, kernels, sizes, d_y), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("sizes", [[700, 1, 0, 99], [0, 0, 0, 800], [200, 200, 200, 200]])
def test_groups_of_several_blocks(sizes):
    x, kernels, d_y = draw(0, 1000, 8), draw(1, 4, 8, 6), draw(2, 1000, 6)
    sizes = np.asarray(sizes, np.int32)
    for got, expected in zip(run(x, kernels, sizes, d_y), reference(x, kernels, sizes, d_y), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_the_form_for_tpu_is_the_same_product():
    x, kernels, d_y = draw(0, 40, 8), draw(1, 4, 8, 6), draw(2, 40, 6)
    sizes = np.asarray([7, 0, 20, 9], np.int32)
    looped, ragged = (jax.jit(f, static_argnums=3) for f in (op._looped_with_kernels, op._ragged_with_kernels))
    for turned, rows in ((False, x), (True, d_y)):
        expected = looped(rows, kernels, sizes, turned)
        np.testing.assert_allclose(ragged(rows, kernels, sizes, turned), expected, atol=1e-5)


def test_tpu_gets_ragged_products_and_one_loop():
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((64, 16), (4, 16, 32), (64, 32))]
    sizes = jax.ShapeDtypeStruct((4,), jnp.int32)
    lowered = jax.export.export(run, platforms=["tpu"])(*arguments[:2], sizes, arguments[2])
    text = lowered.mlir_module()
    assert text.count('stablehlo.composite "chlo.ragged_dot"') == 2
    assert text.count("stablehlo.while") == 1


def test_in_bfloat16_gradients_are_summed_in_float32():
    """Of 4096 ones a sum in bfloat16 would stop at 256."""
    x, kernels = jnp.ones((4096, 1), jnp.bfloat16), jnp.ones((2, 1, 1), jnp.bfloat16)
    y, _, d_kernels = run(x, kernels, jnp.array([4095, 1], jnp.int32), jnp.ones((4096, 1), jnp.bfloat16))
    assert y.dtype == d_kernels.dtype == jnp.bfloat16
    assert d_kernels[:, 0, 0].tolist() == [4096, 1]


def test_what_belongs_to_no_group_reaches_nothing():
    x, kernels = draw(0, 20, 4), draw(1, 2, 4, 3)
    x[9:] = np.nan
    y, d_x, d_kernels = run(x, kernels, np.asarray([4, 5], np.int32), np.ones((20, 3), np.float32))
    assert np.isfinite(d_kernels).all()
    assert not np.asarray(y)[9:].any()
    assert not np.asarray(d_x)[9:].any()


def test_policies_of_remat_know_the_product():
    """With its name saved, the backward pass does not go through the forward loop again."""
    x, kernels, sizes = draw(0, 16, 4), draw(1, 2, 4, 3), jnp.array([7, 9])

    def layer(x):
        return jnp.sin(grouped_matmul(jnp.cos(x), kernels, sizes))

    def loops(policy):
        def loss(x):
            return jnp.sum(jax.checkpoint(layer, policy=policy)(x))

        return jax.jit(jax.value_and_grad(loss)).lower(x).compile().as_text().count(" while(")

    saved = loops(jax.checkpoint_policies.save_only_these_names(op.PRODUCT))
    assert saved < loops(jax.checkpoint_policies.nothing_saveable)


def test_a_product_that_is_mapped_over_is_one_of_each_entry():
    """As of the stages of a pipeline: of several at once the TPU compiler refuses a ragged product."""
    x, kernels, d_y = draw(0, 2, 40, 8), draw(1, 2, 4, 8, 6), draw(2, 2, 40, 6)
    sizes = np.asarray([[7, 0, 20, 9], [1, 30, 0, 2]], np.int32)
    mapped = jax.jit(jax.vmap(run))
    for index, results in enumerate(zip(*mapped(x, kernels, sizes, d_y), strict=True)):
        expected = reference(x[index], kernels[index], sizes[index], d_y[index])
        for got, other in zip(results, expected, strict=True):
            np.testing.assert_allclose(got, other, rtol=1e-5, atol=2e-5)
    program = str(jax.make_jaxpr(jax.vmap(run, in_axes=(0, None, 0, 0)))(x, kernels[0], sizes, d_y))
    found = re.findall(r":f32\[([\d,]+)\] = ragged_dot_general", program)
    assert sorted(found) == ["40,6", "40,6", "40,8", "40,8"]
