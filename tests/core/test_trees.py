"""Paths of nested dicts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import check_shapes, flatten, map_with_path, unflatten

names = st.text("abc_0", min_size=1, max_size=3)
trees = st.recursive(st.integers(), lambda t: st.dictionaries(names, t, min_size=1, max_size=3), max_leaves=8)


@given(st.dictionaries(names, trees, max_size=4))
def test_round_trip(tree):
    assert unflatten(flatten(tree)) == tree


def test_paths_and_order():
    tree = {"b": {"z": 1, "a": {"x": (2, 3)}}, "a": None}
    assert list(flatten(tree).items()) == [("b/z", 1), ("b/a/x", (2, 3)), ("a", None)]


def test_a_mapping_may_be_a_leaf():
    assert flatten({"a": {"b": {"box": 1}}}, is_leaf=lambda x: "box" in x) == {"a/b": {"box": 1}}


def test_map_with_path():
    first, second = {"a": {"b": 1}, "c": 2}, {"c": 20, "a": {"b": 10}}
    assert map_with_path(lambda path, x, y: f"{path}:{x + y}", first, second) == {"a": {"b": "a/b:11"}, "c": "c:22"}
    with pytest.raises(KeyError, match="a/b"):
        map_with_path(lambda path, x, y: x, first, {"c": 1})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a/c": 3}, r"here has no parameter 'a/b', which the model needs \(did you mean 'a/c'\?\); so"),
        ({"a/b": 4}, r"'a/b' has the shape \[4\] in here, the model needs \[3\]; so"),
        ({"a/b": 3, "a": 3}, r"here has the parameter 'a', which the model does not know; so"),
    ],
)
def test_shapes_that_do_not_fit_are_named(found, message):
    def shaped(sizes):
        return {path: np.zeros(size) for path, size in sizes.items()}

    check_shapes(shaped({"a/b": 3}), shaped({"a/b": 3}), "here")
    with pytest.raises(UserError, match=message):
        check_shapes(shaped(found), shaped({"a/b": 3}), "here", hint="; so")
