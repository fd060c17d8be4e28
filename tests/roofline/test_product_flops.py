"""FLOPs of products against closed forms: of programs compiled here, and of the convolutions TPUs make of them."""

import jax
import jax.numpy as jnp
import pytest

from t5x_scale.roofline.flops import fused_flops, product_flops
from t5x_scale.roofline.hlo import parse


def flops_of(function, *shapes):
    """FLOPs of the entry of a compiled function and of what it calls, loops not multiplied."""
    module = parse(jax.jit(function).lower(*(jnp.ones(shape) for shape in shapes)).compile().as_text())
    return sum(fused_flops(module, module.main, instruction) for instruction in module.main.instructions)


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ij,jk->ik", ((8, 16), (16, 32)), 2 * 8 * 16 * 32),
        ("bij,bjk->bik", ((3, 8, 16), (3, 16, 32)), 2 * 3 * 8 * 16 * 32),
        ("bld,dnh->blnh", ((2, 8, 16), (16, 4, 8)), 2 * 2 * 8 * 16 * 4 * 8),
        ("blnh,bsnh->bnls", ((2, 8, 4, 16), (2, 6, 4, 16)), 2 * 2 * 4 * 8 * 6 * 16),
    ],
)
def test_dots_of_a_compiled_program(equation, shapes, expected):
    assert flops_of(lambda a, b: jnp.einsum(equation, a, b), *shapes) == expected


CONVOLUTIONS = [
    # bld,df->blf: an ordinary product.
    ("bf16[4,512,1024]", "bf16[1024,256,1]", "bf16[4,512,256]", "size=1", "0bf_io0->0bf", 2 * 4 * 512 * 256 * 1024),
    # A gradient: 4 rows of 512 positions are contracted, the rows as a window.
    ("bf16[4,512,256]", "bf16[4,512,1024]", "f32[256,1024,1]", "size=4", "0fb_0io->bf0", 2 * 4 * 512 * 256 * 1024),
    # blnh,bsnh->bnls: batch and heads as dilated spatial dimensions of which one position each meets data.
    (
        "bf16[4,32,512,128]",
        "bf16[4,32,512,128]",
        "f32[4,32,512,512]",
        "size=4x32 stride=3x31 lhs_dilate=4x32",
        "01bf_01oi->01bf",
        2 * 4 * 32 * 512 * 512 * 128,
    ),
    # The same with padding and reversal.
    (
        "bf16[4,32,512,128]",
        "bf16[4,32,512,128]",
        "f32[4,32,512,512]",
        "size=4x32 stride=4x32 pad=3_3x31_31 lhs_dilate=3x31 rhs_reversal=1x1",
        "01bf_01oi->01bf",
        2 * 4 * 32 * 512 * 512 * 128,
    ),
    # bld,dnh->blnh with the heads of the result as positions of a padded window.
    (
        "bf16[4,512,1024,1]",
        "bf16[1024,32,128,1]",
        "bf16[4,512,32,128]",
        "size=1x32 pad=0_0x31_31 rhs_reversal=0x1",
        "0bf1_i1o0->0b1f",
        2 * 4 * 512 * 1024 * 32 * 128,
    ),
]


@pytest.mark.parametrize(("left", "right", "result", "window", "labels", "expected"), CONVOLUTIONS)
def test_convolutions_of_the_tpu_compiler(left, right, result, window, labels, expected):
    text = f"""HloModule m

ENTRY %main (a: {left}, b: {right}) -> {result} {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %c = {result} convolution(%a, %b), window={{{window}}}, dim_labels={labels}
}}
"""
    module = parse(text)
    assert product_flops(module.main, module.main.root) == expected


def test_what_multiplies_no_matrices_has_none():
    assert flops_of(lambda a, b: jnp.tanh(a) + b, (8, 8), (8, 8)) == 0
