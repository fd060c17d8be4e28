"""The product of activations with a parameter: the one function behind which other arithmetics live."""

from __future__ import annotations

import functools

import jax

from t5x_scale.partitioning.axes import Axes
from t5x_scale.partitioning.shardings import constrain, gather


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul(x: jax.Array, kernel: jax.Array, axes: Axes, inputs: int = 1) -> jax.Array:
    """Contracts the last `inputs` dimensions of `x` with the first `inputs` of `kernel`.

    `[..., in] x [in, out] -> [..., out]`, where `in` and `out` may each be several dimensions and `axes` are the
    kernel's logical ones.

    The kernel is gathered from where it is stored before each use, and only its shard is kept between the
    passes. Its gradient is written as a product in the kernel's own layout: automatic differentiation asks for
    the transpose, which costs the CPU backend a transposed copy of every cotangent (measured: 1.6 times the time
    of a whole feed-forward layer).
    """
    return _product(x, gather(kernel, axes), inputs)


def _product(x: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
    contract = (tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs)))
    return jax.lax.dot_general(x, kernel, (contract, ((), ())))


def _forward(x: jax.Array, kernel: jax.Array, axes: Axes, inputs: int):
    # The product itself, not a call of `matmul`: the policies of remat know a product when they see one.
    return _product(x, gather(kernel, axes), inputs), (x, kernel)


def _backward(axes: Axes, inputs: int, saved: tuple[jax.Array, jax.Array], d_y: jax.Array):
    x, kernel = saved
    batch = tuple(range(x.ndim - inputs))
    outputs = tuple(range(len(batch), d_y.ndim))
    contract = (outputs, tuple(range(inputs, kernel.ndim)))
    d_x = jax.lax.dot_general(d_y, gather(kernel, axes), (contract, ((), ())))
    d_kernel = jax.lax.dot_general(x, d_y, ((batch, batch), ((), ())))
    return d_x, constrain(d_kernel, axes)


matmul.defvjp(_forward, _backward)
