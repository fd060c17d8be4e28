"""Every operation against its inverse, and against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.lazy import from_array
from t5x_scale.interop.operations import (
    Merge,
    Permute,
    Split,
    Stack,
    Transpose,
    Unstack,
    apply_all,
    inverse_of_all,
)

SIZES = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)


@st.composite
def chains(draw):
    """An array and a chain of operations that fit it, as a row of a table might have them."""
    shape = draw(SIZES)
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    values, operations = (from_array(array),), []
    for _ in range(draw(st.integers(0, 5))):
        operation = draw(operations_on(values))
        values = operation.apply(values)
        operations.append(operation)
    return array, tuple(operations)


@st.composite
def operations_on(draw, values):
    """An operation that fits these arrays, which are of one shape."""
    shape = values[0].shape
    axis = draw(st.integers(0, len(shape) - 1))
    choices = [
        st.just(Transpose(tuple(draw(st.permutations(range(len(shape))))))),
        st.just(
            Permute(axis - draw(st.sampled_from([0, len(shape)])), tuple(draw(st.permutations(range(shape[axis])))))
        ),
        st.sampled_from(
            [Split(axis, (d, shape[axis] // d)) for d in range(1, shape[axis] + 1) if shape[axis] % d == 0]
        ),
        st.just(Merge(0, shape[: axis + 1])),
    ]
    if len(values) == 1 and len(shape) > 1:
        choices.append(st.just(Unstack(axis, shape[axis])))
    if len(values) > 1:
        choices.append(st.just(Stack(axis, len(values))))
    return draw(st.one_of(choices))


@given(chains())
def test_the_inverse_brings_every_element_back(case):
    array, operations = case
    there = apply_all(operations, (from_array(array),))
    (back,) = apply_all(inverse_of_all(operations), there)
    np.testing.assert_array_equal(back.read(), array)


@given(chains())
def test_the_inverse_of_the_inverse_is_the_operation(case):
    _, operations = case
    assert inverse_of_all(inverse_of_all(operations)) == operations


def test_operations_against_numpy():
    x = np.arange(24, dtype=np.float32).reshape(6, 4)

    def apply(operation):
        return [one.read() for one in operation.apply((from_array(x),))]

    np.testing.assert_array_equal(apply(Transpose((1, 0)))[0], x.T)
    np.testing.assert_array_equal(apply(Split(0, (2, 3)))[0], x.reshape(2, 3, 4))
    np.testing.assert_array_equal(apply(Merge(0, (6, 4)))[0], x.reshape(24))
    np.testing.assert_array_equal(apply(Permute(-1, (2, 0, 3, 1)))[0], x[:, [2, 0, 3, 1]])
    np.testing.assert_array_equal(np.stack(apply(Unstack(1, 4)), axis=1), x)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Split(0, (4, 2)), "a dimension of 6 does not split"),
        (Merge(0, (4, 6)), r"dimensions \[6, 4\] where \[4, 6\] are merged"),
        (Unstack(0, 3), "a dimension of 6 is not unstacked into 3"),
        (Stack(0, 2), "1 arrays where 2 are stacked"),
    ],
)
def test_what_does_not_fit_is_refused(operation, message):
    with pytest.raises(ValueError, match=message):
        operation.apply((from_array(np.zeros((6, 4), np.float32)),))


def test_an_inverse_of_what_is_no_permutation_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 0, 1\] is not a permutation"):
        Permute(0, (0, 0, 1)).inverse()


def test_a_turned_matrix_is_read_in_the_order_of_its_file():
    (turned,) = Transpose((1, 0)).apply((from_array(np.zeros((6, 4), np.float32)),))
    assert turned.outer == (1,)
