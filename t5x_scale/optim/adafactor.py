"""Adafactor with a factored second moment: the optimiser whose state is smaller than its parameters."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t5x_scale.core.trees import flatten, unflatten
from t5x_scale.optim import transforms
from t5x_scale.optim.interface import (
    NO_OPTIONS,
    STACKS,
    Axes,
    AxesTree,
    Options,
    Params,
    Schedule,
    check_config,
    matching_state_axes,
)
from t5x_scale.optim.palm_adafactor import adafactor_chain, moment_weight


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor (arXiv 1804.04235): row and column means of the squared gradient stand for the second moment.

    Each matrix of a stack (of layers, of experts) is factored for itself over its two largest dimensions, if both
    have at least `min_dim_to_factor` elements; other parameters keep a full second moment. The rest is as in
    `palm_adafactor.PalmAdafactor`, with the same order of operations.

    Attributes:
      learning_rate: relative to the size of the parameters; T5: `schedules.ConstantThenRsqrt()`.
      momentum: exponential average of the scaled update; 0 keeps none, which is the point of Adafactor.
      decay_exponent: of the second moment's decay, 1 - k^-decay_exponent.
      clipping_threshold: largest RMS of the normalised update of a layer; None is no clipping.
      weight_decay_exponent: the decay is `lr ** weight_decay_exponent`; None is none.
      min_dim_to_factor: smallest dimension worth factoring.
      min_scale: smallest scale of a parameter.
      epsilon: added to the squared gradient.
      momentum_dtype: storage of the momentum, `float32` or `bfloat16`.
      decay_min_rank: parameters of fewer dimensions a layer do not decay; 0: all decay.
    """

    learning_rate: Schedule
    momentum: float = 0.0
    decay_exponent: float = 0.8
    clipping_threshold: float | None = 1.0
    weight_decay_exponent: float | None = None
    min_dim_to_factor: int = 128
    min_scale: float = 1e-3
    epsilon: float = 1e-30
    momentum_dtype: str = "float32"
    decay_min_rank: int = 2

    def __post_init__(self):
        check_config(
            self,
            momentum=(0, 1),
            decay_exponent=(0, math.inf),
            clipping_threshold=(1e-6, math.inf),
            weight_decay_exponent=(0, math.inf),
            min_dim_to_factor=(1, math.inf),
            min_scale=(0, math.inf),
            epsilon=(0, math.inf),
            decay_min_rank=(0, math.inf),
        )

    def make(self, axes: AxesTree, options: Options = NO_OPTIONS) -> optax.GradientTransformation:
        """See `interface.Optimizer`."""
        second_moment = scale_by_factored_moment(self, axes)
        return transforms.in_float32(adafactor_chain(self, second_moment, axes, options), axes)

    def state_axes(self, abstract_params: Params, axes: AxesTree) -> Any:
        """See `interface.Optimizer`."""
        flat_axes = flatten(axes)
        reduced = {}
        for path, param in flatten(abstract_params).items():
            names = flat_axes[path]
            if dims := factored_dims(param.shape, names, self.min_dim_to_factor):
                reduced["v_row", path] = _without(names, dims[1])
                reduced["v_col", path] = _without(names, dims[0])
        return matching_state_axes(self.make(axes), abstract_params, axes, reduced)


class FactoredMomentState(NamedTuple):
    """State of `scale_by_factored_moment`. Each tree holds only the parameters it has something for.

    Attributes:
      count: number of updates made, int32 scalar.
      v_row: means of the squared gradient over the larger factored dimension.
      v_col: means over the smaller one.
      v: full averages for parameters that are not factored.
    """

    count: jax.Array
    v_row: dict[str, Any]
    v_col: dict[str, Any]
    v: dict[str, Any]


def factored_dims(shape: tuple[int, ...], names: Axes, min_dim: int) -> tuple[int, int] | None:
    """The second largest and the largest dimension that are sides of a matrix, or None if one is under `min_dim`."""
    sides = sorted((d for d, name in enumerate(names) if name not in STACKS), key=lambda d: shape[d])
    if len(sides) < 2 or shape[sides[-2]] < min_dim:
        return None
    return sides[-2], sides[-1]


def scale_by_factored_moment(config: Adafactor, axes: AxesTree) -> optax.GradientTransformation:
    """Divides by the root of the second moment v_ij = row_i col_j / mean(row), and clips each layer's RMS."""
    flat_axes, min_dim = flatten(axes), config.min_dim_to_factor

    def init(params: Any) -> FactoredMomentState:
        rows, columns, full = {}, {}, {}
        for path, param in flatten(params).items():
            if dims := factored_dims(param.shape, flat_axes[path], min_dim):
                rows[path] = jnp.zeros(_without(param.shape, dims[1]), jnp.float32)
                columns[path] = jnp.zeros(_without(param.shape, dims[0]), jnp.float32)
            else:
                full[path] = jnp.zeros(param.shape, jnp.float32)
        return FactoredMomentState(jnp.zeros((), jnp.int32), unflatten(rows), unflatten(columns), unflatten(full))

    def update(updates: Any, state: FactoredMomentState, params: Any = None) -> tuple[Any, FactoredMomentState]:
        count = optax.safe_increment(state.count)
        weight = moment_weight(count, config.decay_exponent)
        old_rows, old_columns, old_full = flatten(state.v_row), flatten(state.v_col), flatten(state.v)
        rows, columns, full, scaled = {}, {}, {}, {}
        for path, g in flatten(updates).items():
            if dims := factored_dims(g.shape, flat_axes[path], min_dim):
                # The barrier keeps the two means from sharing the square, and so the square out of memory.
                hidden = jax.lax.optimization_barrier(g)
                rows[path] = _average(old_rows[path], _mean_square(g, dims[1], config.epsilon), weight)
                columns[path] = _average(old_columns[path], _mean_square(hidden, dims[0], config.epsilon), weight)
                function, operands = _divide_by_factors, (g, *_inverse_roots(rows[path], columns[path], *dims))
            else:
                full[path] = _average(old_full[path], jnp.square(g) + config.epsilon, weight)
                function, operands = _divide_by_root, (g, full[path])
            scaled[path] = transforms.clip_to_rms(function, operands, flat_axes[path], config.clipping_threshold)
        new_state = FactoredMomentState(count, unflatten(rows), unflatten(columns), unflatten(full))
        return unflatten(scaled), new_state

    return optax.GradientTransformation(init, update)


def _mean_square(g: jax.Array, dim: int, epsilon: float) -> jax.Array:
    return jnp.mean(jnp.square(g), axis=dim) + epsilon


def _average(old: jax.Array, new: jax.Array, weight: jax.Array) -> jax.Array:
    return (1.0 - weight) * old + weight * new


def _inverse_roots(row: jax.Array, column: jax.Array, column_dim: int, row_dim: int) -> tuple[jax.Array, jax.Array]:
    """The two factors of 1 / sqrt(v), broadcastable to the gradient. `row` lacks `row_dim`, `column` `column_dim`."""
    row = jnp.expand_dims(row, row_dim)
    column = jnp.expand_dims(column, column_dim)
    # Divided before the roots: the product of two second moments can fall out of float32's range.
    return 1.0 / jnp.sqrt(row / jnp.mean(row, axis=column_dim, keepdims=True)), 1.0 / jnp.sqrt(column)


def _divide_by_factors(g: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    return g * row * column


def _divide_by_root(g: jax.Array, v: jax.Array) -> jax.Array:
    return g / jnp.sqrt(v)


def _without(entries: tuple[Any, ...], dim: int) -> tuple[Any, ...]:
    return entries[:dim] + entries[dim + 1 :]
