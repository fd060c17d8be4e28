"""A linear map over one or more trailing dimensions."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_scale.layers.initializers import FanIn, Initializer
from t5x_scale.layers.ops.matmul import matmul
from t5x_scale.partitioning.shards import gather_parameter


class Linear(nn.Module):
    """`x[..., in] -> y[..., out]` where `in` and `out` may each be several dimensions.

    Attributes:
      in_shape, out_shape: sizes of the contracted and of the new dimensions.
      axes: logical names of the kernel's dimensions, `len(in_shape) + len(out_shape)` of them.
      use_bias: adds a bias of `out_shape`, initialised with zeros.
      dtype: the dtype of the product; parameters are stored in `param_dtype` and cast.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    axes: tuple[str, ...]
    use_bias: bool = False
    kernel_init: Initializer = FanIn()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = len(self.in_shape)
        fan_in = math.prod(self.in_shape)

        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return self.kernel_init(key, shape, dtype, fan_in)

        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(init, self.axes),
            (*self.in_shape, *self.out_shape),
            self.param_dtype,
        )
        y = matmul(x.astype(self.dtype), kernel.astype(self.dtype), self.axes, inputs)
        if self.use_bias:
            axes = self.axes[inputs:]
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), axes)
            bias = self.param("bias", zeros, self.out_shape, self.param_dtype)
            y += gather_parameter(bias, axes).astype(self.dtype)
        return y
