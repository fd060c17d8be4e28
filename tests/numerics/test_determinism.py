"""The same seed gives the same bits; another one does not."""

import jax
import numpy as np
import pytest

from t5x_scale.core.trees import flatten


def test_two_runs_have_the_same_bits(numerics):
    first = numerics.train("parallel", "palm_adafactor", mesh="fsdp=2 model=4")
    second = numerics.train("parallel", "palm_adafactor", mesh="fsdp=2 model=4", repeat=1)
    assert first[0] is not second[0]
    np.testing.assert_array_equal(first[0], second[0])
    jax.tree.map(np.testing.assert_array_equal, first[1], second[1])


def test_another_seed_differs(numerics):
    first = flatten(numerics.initial_params("parallel"))
    second = flatten(numerics.initial_params("parallel", 1))
    for path, leaf in first.items():
        if not path.endswith("scale"):
            assert (leaf != second[path]).mean() > 0.99, path


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", "fsdp=2 model=4"])
def test_initial_parameters_do_not_depend_on_the_mesh(numerics, mesh):
    runtime = numerics.make_runtime("parallel", "palm_adafactor", mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, runtime.abstract_params)
    init = jax.jit(runtime.program.model.init, out_shardings=shardings, compiler_options=numerics.FAST)
    params = init(jax.random.key(0, impl="threefry2x32"))
    for leaf, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), numerics.initial_params("parallel"))
