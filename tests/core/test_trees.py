"""Paths of nested dicts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.trees import flatten, map_with_path, unflatten

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
