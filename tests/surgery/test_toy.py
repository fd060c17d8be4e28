"""The toy has the tensors that models of this house have."""

import pytest
import toy

from t5x_scale.models.assembly import axes_of, shapes_of


@pytest.mark.parametrize("name", toy.FAMILIES)
def test_paths_shapes_and_axes_are_those_of_the_model(name):
    weights = toy.make_weights(toy.FAMILIES[name])
    assert toy.shapes(weights.leaves) == shapes_of(toy.FAMILIES[name])
    assert {path: leaf.axes for path, leaf in weights.leaves.items()} == axes_of(toy.FAMILIES[name])
