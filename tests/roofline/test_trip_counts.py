"""Loops turn as often as they were written to, whichever way the compiler writes it down."""

import jax
import jax.numpy as jnp
import pytest

from t5x_scale.layers.ops.grouped_matmul import grouped_matmul
from t5x_scale.roofline.hlo import parse
from t5x_scale.roofline.loops import trip_count, usual_turns

LOOP = """HloModule m

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %p = (s32[]{{:T(128)}}, f32[4]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4]{{0}} get-tuple-element(%p), index=1
  %step = s32[] constant({step})
  %next = s32[] {grow}(%i, %step)
  ROOT %out = (s32[], f32[4]{{0}}) tuple(%next, %x)
}}

%condition (p: (s32[], f32[4])) -> pred[] {{
  %p = (s32[]{{:T(128)}}, f32[4]{{0}}) parameter(0)
  %limit = s32[] constant({limit})
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare({compared}), direction={direction}
}}

ENTRY %main (x: f32[4]) -> f32[4] {{
  %x = f32[4]{{0}} parameter(0)
  %zero = s32[] constant({start})
  %first = s32[] copy(%zero)
  %state = (s32[], f32[4]{{0}}) tuple(%first, %x)
  %while.1 = (s32[], f32[4]{{0}}) while(%state), condition=%condition, body=%body{known}
  ROOT %y = f32[4]{{0}} get-tuple-element(%while.1), index=1
}}
"""


def turns(**changes):
    values = {
        "start": 0,
        "limit": 32,
        "step": 1,
        "grow": "add",
        "compared": "%i, %limit",
        "direction": "LT",
        "known": "",
    }
    module = parse(LOOP.format(**(values | changes)))
    return trip_count(module, module.main, module.main.find("while.1"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 32),
        ({"start": 2}, 30),
        ({"step": 3}, 11),
        ({"direction": "LE"}, 33),
        ({"compared": "%limit, %i", "direction": "GT"}, 32),
        ({"start": 10, "limit": 0, "step": -1, "direction": "GT"}, 10),
        ({"start": 10, "limit": 0, "grow": "subtract", "direction": "GE"}, 11),
        ({"start": 40}, 0),
        ({"known": ', backend_config={"known_trip_count":{"n":"7"}}'}, 7),
        ({"compared": "%i, %i"}, None),
    ],
)
def test_turns(changes, expected):
    assert turns(**changes) == expected


def test_nested_scans_of_a_compiled_program():
    def inner(x, _):
        return jnp.sin(x), None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, length=5)[0] + 1, None

    def program(x):
        return jax.lax.scan(outer, x, None, length=3)[0]

    module = parse(jax.jit(program).lower(jnp.ones((128, 128))).compile().as_text())
    found = sorted(
        trip_count(module, computation, instruction)
        for computation in module.computations.values()
        for instruction in computation.instructions
        if instruction.opcode == "while"
    )
    assert found == [3, 5]


def test_a_loop_whose_end_depends_on_data_is_unknown():
    def program(x):
        return jax.lax.while_loop(lambda v: v.sum() < 100, lambda v: v * 2, x)

    module = parse(jax.jit(program).lower(jnp.ones((8,))).compile().as_text())
    loops = [(c, i) for c in module.computations.values() for i in c.instructions if i.opcode == "while"]
    assert [trip_count(module, *loop) for loop in loops] == [None]


def test_loops_over_the_rows_of_experts_say_how_often_they_usually_turn():
    """1,024 rows for 8 experts, in blocks of 64: 16 that are full, and half of one is left over for each expert."""

    def program(x, kernels, sizes):
        y, pull = jax.vjp(lambda *factors: grouped_matmul(*factors, sizes), x, kernels)
        return pull(y)

    arguments = jnp.ones((1024, 16)), jnp.ones((8, 16, 16)), jnp.full(8, 128, jnp.int32)
    module = parse(jax.jit(program).lower(*arguments).compile().as_text())
    loops = [(c, i) for c in module.computations.values() for i in c.instructions if i.opcode == "while"]
    assert [trip_count(module, *loop) for loop in loops] == [None] * len(loops)
    assert {usual_turns(loop) for _, loop in loops} == {20}
