"""Origins add up, and the report names every tensor."""

import numpy as np
import pytest

from t5x_scale.core import lazy
from t5x_scale.core.leaves import Leaf, Origin, render_origins


def make_leaf(*kinds):
    leaf = Leaf(lazy.from_array(np.zeros((2, 3), np.float32)), ("layers", None), Origin("restored", "a"))
    for kind in kinds:
        leaf = leaf.changed(leaf.array, kind, f"by {kind}")
    return leaf


def test_the_stronger_change_names_the_kind_and_all_details_stay():
    origin = make_leaf("grown", "copied").origin
    assert origin == Origin("grown", "a", "by grown; by copied")
    assert origin.render() == "grown from a (by grown; by copied)"


def test_the_report_has_a_line_a_tensor_and_the_dropped_ones():
    text = render_origins({"x/kernel": make_leaf(), "y": make_leaf("scaled")}, {"z": Origin("dropped", "z")})
    lines = text.splitlines()
    assert lines[0].split() == ["x/kernel", "2x3", "float32", "restored", "from", "a"]
    assert lines[2].split() == ["z", "dropped", "from", "z"]
    assert lines[3] == "2 tensors, 12 elements: 1 restored, 1 scaled, 1 dropped"
    assert render_origins({}) == "0 tensors, 0 elements: \n"


def test_a_leaf_knows_all_its_dimensions():
    with pytest.raises(ValueError, match="axes"):
        Leaf(lazy.from_array(np.zeros((2, 3))), ("layers",), Origin("restored"))
    with pytest.raises(ValueError, match="unknown kind"):
        Origin("found")
