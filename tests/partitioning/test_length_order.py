"""The zigzag order by hand, and how much each device then has to attend to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError
from t5x_scale.partitioning import length_order, rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.shardings import activation_rules


def test_zigzag_by_hand():
    # Eight pieces of one position: device 0 has the first and the last.
    np.testing.assert_array_equal(length_order.places(8, 4, "zigzag"), [0, 7, 1, 6, 2, 5, 3, 4])
    np.testing.assert_array_equal(length_order.places(8, 2, "zigzag"), [0, 1, 6, 7, 2, 3, 4, 5])


@pytest.mark.parametrize(("devices", "order"), [(1, "zigzag"), (4, "contiguous")])
def test_natural_order(devices, order):
    np.testing.assert_array_equal(length_order.places(8, devices, order), np.arange(8))


def test_zigzag_is_even_where_contiguous_is_not():
    def keys_seen(order):
        return (length_order.places(64, 8, order) + 1).reshape(8, -1).sum(axis=1)

    assert len(set(keys_seen("zigzag"))) == 1
    assert keys_seen("contiguous")[-1] > 10 * keys_seen("contiguous")[0]


def test_all_fields_move_together():
    mesh = MeshConfig(fsdp=2, context=4).make_mesh()
    batch = {name: np.arange(16).reshape(2, 8).astype(fields.DTYPES[name]) for name in fields.REQUIRED}

    def move(batch):
        with activation_rules(mesh, rules.context()):
            return length_order.in_order(batch, "zigzag")

    moved = jax.jit(move)(batch)
    index = [0, 7, 1, 6, 2, 5, 3, 4]
    for name in fields.REQUIRED:
        np.testing.assert_array_equal(moved[name], batch[name][:, index])
    np.testing.assert_array_equal(moved[fields.INDEX], [index, index])


def test_nothing_moves_where_nothing_is_split():
    batch = {fields.INPUT_TOKENS: jnp.zeros((1, 3), jnp.int32)}
    assert length_order.in_order(batch, "zigzag") is batch
    with activation_rules(MeshConfig(fsdp=8).make_mesh(), rules.context()):
        assert length_order.in_order(batch, "zigzag") is batch


@pytest.mark.parametrize(
    ("length", "table", "sizes", "order", "message"),
    [
        (12, rules.context(), {"context": 4}, "zigzag", "over context=4 in zigzag order: .* multiple of 8, such as 8"),
        (10, rules.context(), {"context": 4}, "contiguous", "over context=4: .* multiple of 4, such as 8"),
        (6, rules.context(), {"context": 4}, "zigzag", "multiple of 8, such as 8"),
        (9, rules.sequence(), {"model": 4}, "zigzag", "over model=4: .* multiple of 4, such as 8"),
        (20, rules.sequence(), {"context": 2, "model": 4}, "zigzag", "context=2 x model=4 in .* of 8, such as 16"),
    ],
)
def test_lengths_that_do_not_divide(length, table, sizes, order, message):
    mesh = MeshConfig(**{"fsdp": 1, **sizes}).make_abstract_mesh()
    with pytest.raises(UserError, match=message):
        length_order.check_length(length, mesh, table, order)
    length_order.check_length(64, mesh, table, order)


def test_errors_name_the_nearest():
    with pytest.raises(UserError, match=r"context_order is 'zigzig' \(did you mean 'zigzag'\?\)"):
        length_order.check_order("zigzig")
    two = rules.make_rules({"length": ("context", "model")})
    with pytest.raises(UserError, match="'length' on one mesh axis, not on context and model"):
        length_order.length_axis(MeshConfig(fsdp=1, context=2, model=2).make_abstract_mesh(), two)
