"""What a program holds: arguments that lie on too many devices, what loops stack up, and the largest arrays."""

import jax
import jax.numpy as jnp
import pytest

from t5x_scale.roofline.hlo import parse
from t5x_scale.roofline.memory import _parts, copied_arguments, largest, stacks

ARGUMENTS = """HloModule m

ENTRY %main (a: f32[8], b: f32[8], c: f32[8], d: f32[8]) -> f32[8] {
  %a = f32[1048576,8]{1,0} parameter(0), sharding={devices=[8,1]<=[8]}, metadata={op_name="state.params[\\'a\\']"}
  %b = f32[1048576,8]{1,0} parameter(1), sharding={replicated}, metadata={op_name="state.params[\\'b\\']"}
  %c = f32[1048576,8]{1,0} parameter(2), sharding={devices=[2,1,4]<=[8] last_tile_dim_replicate}, metadata={op_name="c"}
  %d = f32[8]{0} parameter(3), sharding={replicated}, metadata={op_name="small"}
  ROOT %r = f32[8]{0} copy(%d)
}
"""


def test_arguments_that_several_devices_hold_alike():
    module = parse(ARGUMENTS)
    rows = copied_arguments(module, 8)
    assert [(row.name, row.copies) for row in rows] == [("state.params['b']", 8), ("c", 4)]
    assert rows[0].bytes == 2**25
    assert rows[0].array == "f32[1048576,8]"


@pytest.mark.parametrize(
    ("sharding", "parts"),
    [
        ("{replicated}", 1),
        ("{devices=[1,8]<=[8]}", 8),
        ("{devices=[1,2,4]<=[2,4]T(1,0) last_tile_dim_replicate}", 2),
        ("{devices=[2,1,2,2]<=[8] last_tile_dims={manual, replicated}}", 2),
        ("{mesh['a'=2,'b'=4], [{'b'}, {}]}", 4),
        ("{mesh['a'=2,'b'=4], [{'a','b'}, {}]}", 8),
        ("{mesh['a'=2,'b'=4], [{}, {'b':(1)2}]}", 2),
        ("{mesh['a'=2,'b'=4], [{}, {}]}", 1),
        ("{a form of the future}", None),
    ],
)
def test_ways_of_writing_a_sharding(sharding, parts):
    assert _parts(f', sharding={sharding}, metadata={{op_name="x"}}') == parts


def test_copies_for_data_parallelism_are_meant():
    assert [row.name for row in copied_arguments(parse(ARGUMENTS), 8, wanted=4)] == ["state.params['b']"]


@pytest.fixture(scope="module")
def trained():
    """The gradient of five layers, each of which saves its input."""

    @jax.checkpoint
    def layer(x, weights):
        return jnp.tanh(x @ weights), None

    def loss(weights, x):
        return jax.lax.scan(layer, x, weights)[0].sum()

    shapes = (jnp.ones((5, 32, 32)), jnp.ones((16, 32)))
    return parse(jax.jit(jax.grad(loss)).lower(*shapes).compile().as_text())


def test_what_forward_loops_save(trained):
    assert (5, 16, 32) in [array.dims for _, array in stacks(trained)]
    # The gradients are stacked by the loop of the backward pass.
    assert (5, 32, 32) not in [array.dims for _, array in stacks(trained)]


def test_the_largest_arrays_come_first(trained):
    rows = largest(trained, 4)
    assert [row.bytes for row in rows] == sorted((row.bytes for row in rows), reverse=True)
    assert rows[0].bytes == 5 * 32 * 32 * 4
