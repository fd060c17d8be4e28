"""Tables of tensors: there, back, and what does not fit."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.core.lazy import from_array
from t5x_scale.core.leaves import Origin
from t5x_scale.interop.mapping import expected_shapes, read_rows, row, write_rows
from t5x_scale.interop.operations import Split, Transpose, Unstack

ROWS = [
    row("embedding", "wte.weight"),
    row("layers/query layers/key", "h.{layer}.qk.weight", Split(0, (2, 4)), Unstack(0, 2), Transpose((1, 0))),
    row("layers/experts/wi", "h.{layer}.experts.{expert}.w1", Transpose((1, 0))),
]
SHAPES = {"embedding": (5, 3), "layers/query": (2, 3, 4), "layers/key": (2, 3, 4), "layers/experts/wi": (2, 3, 3, 6)}
AXES = {
    "embedding": ("vocab", "embed"),
    "layers/query": ("layers", "embed", "kv"),
    "layers/key": ("layers", "embed", "kv"),
    "layers/experts/wi": ("layers", "expert", "embed", "mlp"),
}


def theirs(dtype=ml_dtypes.bfloat16, seed=0):
    """Random tensors of every name in the table."""
    draw = np.random.default_rng(seed)
    return {
        name: from_array(draw.standard_normal(shape).astype(dtype))
        for name, shape in expected_shapes(ROWS, SHAPES).items()
    }


def read(tensors):
    return read_rows(ROWS, tensors, SHAPES, AXES)


def test_expected_shapes():
    shapes = expected_shapes(ROWS, SHAPES)
    assert len(shapes) == 1 + 2 + 6
    assert shapes["wte.weight"] == (5, 3)
    assert shapes["h.1.qk.weight"] == (8, 3)
    assert shapes["h.1.experts.2.w1"] == (6, 3)


def test_elements_stand_where_the_table_says():
    tensors = theirs()
    leaves = read(tensors)
    qk = tensors["h.1.qk.weight"].read()
    np.testing.assert_array_equal(leaves["layers/query"].array.read()[1], qk[:4].T)
    np.testing.assert_array_equal(leaves["layers/key"].array.read()[1], qk[4:].T)
    expert = tensors["h.0.experts.2.w1"].read()
    np.testing.assert_array_equal(leaves["layers/experts/wi"].array.read()[0, 2], expert.T)


def test_leaves_have_axes_origins_and_the_order_of_the_model():
    leaves = read(theirs())
    assert list(leaves) == list(SHAPES)
    assert {path: leaf.axes for path, leaf in leaves.items()} == AXES
    assert leaves["embedding"].origin == Origin("renamed", "wte.weight")
    assert leaves["layers/key"].origin == Origin("renamed", "h.{layer}.qk.weight", "part 2 of 2")


@given(st.integers(0, 2**32), st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]))
def test_the_way_back_gives_the_same_bytes(seed, dtype):
    tensors = theirs(dtype, seed)
    back = write_rows(ROWS, read(tensors))
    assert list(back) == list(expected_shapes(ROWS, SHAPES))
    for name, array in back.items():
        assert array.dtype == dtype
        assert array.read().tobytes() == tensors[name].read().tobytes()


def test_layers_are_read_one_after_another():
    assert read(theirs())["layers/experts/wi"].array.outer[:2] == (0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"h.1.qk.weigth": t.pop("h.1.qk.weight")},
         r"tensor 'h.1.qk.weight' \[8, 3\] is missing \(did you mean 'h.1.qk.weigth'\?\)"),
        (lambda t: {name: one for name, one in t.items() if "experts" not in name},
         r"tensor 'h.0.experts.0.w1' \[6, 3\] is missing, and 5 more"),
        (lambda t: t | {"h.2.qk.weight": t["h.1.qk.weight"]},
         r"tensor 'h.2.qk.weight' \[8, 3\] has no place in the model \(did you mean 'h.[01].qk.weight'"),
        (lambda t: t | {"wte.weight": from_array(np.zeros((3, 5), np.float32))},
         r"tensor 'wte.weight' is \[3, 5\] where the configuration makes it \[5, 3\]; it is transposed"),
        (lambda t: t | {"h.0.qk.weight": from_array(np.zeros((6, 3), np.float32))},
         r"tensor 'h.0.qk.weight' is \[6, 3\] where the configuration makes it \[8, 3\]$"),
        (lambda t: t | {"wte.weight": from_array(np.zeros((5, 3), np.int8))},
         r"tensor 'wte.weight' is int8; tensors of float32, .* are read, quantised ones not"),
        (lambda t: t | {"h.1.experts.2.w1": from_array(np.zeros((6, 3), np.float32))},
         r"'h.1.experts.2.w1' is float32, but 'h.0.experts.0.w1', with which it is stacked, is bfloat16"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(change, message):
    with pytest.raises(UserError, match=message):
        read(change(theirs()))


def test_leaves_that_do_not_fit_are_named():
    leaves = read(theirs())
    with pytest.raises(UserError, match=r"no parameter 'layers/key' \(did you mean 'layers/keys'\?\)"):
        write_rows(ROWS, {("layers/keys" if path == "layers/key" else path): leaf for path, leaf in leaves.items()})
    with pytest.raises(UserError, match="the parameter 'layers/bias' has no place in the other format"):
        write_rows(ROWS, {**leaves, "layers/bias": leaves["embedding"]})


def test_names_in_braces_are_those_of_layers_and_experts():
    with pytest.raises(ValueError, match=r"'h.\{block\}.w' has \['block'\] in braces"):
        row("w", "h.{block}.w")
