"""PaLM's optimiser: Adafactor without factoring, that is Adam whose step is scaled by the size of the parameter."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t5x_scale.core.trees import flatten, map_with_path
from t5x_scale.optim import transforms
from t5x_scale.optim.interface import (
    NO_OPTIONS,
    Axes,
    AxesTree,
    Options,
    Params,
    Schedule,
    check_config,
    matching_state_axes,
)


@dataclasses.dataclass(frozen=True)
class PalmAdafactor:
    """Adafactor as PaLM used it (arXiv 2204.02311, section 5), with T5X's order of operations.

    For the k-th update, counted from 1, of a parameter p with gradient g, and all RMS taken per layer:

        v <- b2 v + (1 - b2) (g^2 + epsilon)          with b2 = 1 - k^-decay_exponent
        y  = g / sqrt(v)
        y <- y / max(1, RMS(y) / clipping_threshold)
        m <- momentum m + (1 - momentum) lr max(RMS(p), min_scale) y
        p <- (1 - lr^weight_decay_exponent) p - m

    Attributes:
      learning_rate: PaLM: `schedules.ConstantThenRsqrt()`.
      momentum: exponential average of the scaled update, without bias correction; 0 keeps none.
      decay_exponent: of the second moment's decay. Rare rows of the embedding need the long window it grows to.
      clipping_threshold: largest RMS of y; None is no clipping. The paper does not say. The default is that of T5X,
        the code base PaLM was trained with; a gradient that is suddenly large against its history then moves the
        parameters no further than a usual one.
      weight_decay_exponent: the decay is `lr ** weight_decay_exponent`, not multiplied by lr again; None is none.
      min_scale: smallest scale of a parameter, so that one that starts at zero can leave it.
      epsilon: added to g^2.
      momentum_dtype: storage of the momentum, `float32` or `bfloat16`.
      decay_min_rank: parameters of fewer dimensions a layer do not decay. 0: all decay, as in PaLM.
    """

    learning_rate: Schedule
    momentum: float = 0.9
    decay_exponent: float = 0.8
    clipping_threshold: float | None = 1.0
    weight_decay_exponent: float | None = 2.0
    min_scale: float = 1e-3
    epsilon: float = 1e-30
    momentum_dtype: str = "float32"
    decay_min_rank: int = 0

    def __post_init__(self):
        check_config(
            self,
            momentum=(0, 1),
            decay_exponent=(0, math.inf),
            clipping_threshold=(1e-6, math.inf),
            weight_decay_exponent=(0, math.inf),
            min_scale=(0, math.inf),
            epsilon=(0, math.inf),
            decay_min_rank=(0, math.inf),
        )

    def make(self, axes: AxesTree, options: Options = NO_OPTIONS) -> optax.GradientTransformation:
        """See `interface.Optimizer`."""
        second_moment = scale_by_second_moment(self.decay_exponent, self.epsilon, self.clipping_threshold, axes)
        return transforms.in_float32(adafactor_chain(self, second_moment, axes, options), axes)

    def state_axes(self, abstract_params: Params, axes: AxesTree) -> Any:
        """See `interface.Optimizer`."""
        return matching_state_axes(self.make(axes), abstract_params, axes)


def adafactor_chain(
    config: Any, second_moment: optax.GradientTransformation, axes: AxesTree, options: Options
) -> optax.GradientTransformation:
    """What Adafactor does from the division by the root of the second moment on.

    Args:
      config: holds the fields of `PalmAdafactor` but those of the second moment.
      second_moment: the link that holds v, divides by its root and clips.
    """
    links = [
        second_moment,
        optax.scale_by_learning_rate(config.learning_rate, flip_sign=False),
        transforms.scale_leaves(options),
        transforms.scale_by_layer_rms(config.min_scale, axes),
    ]
    if config.momentum:
        links.append(optax.ema(config.momentum, debias=False, accumulator_dtype=config.momentum_dtype))
    if config.weight_decay_exponent is not None:
        links.append(_decay_with_rate(config, axes, options))
    return optax.chain(*links, optax.scale(-1.0))


def _decay_with_rate(config: Any, axes: AxesTree, options: Options) -> optax.GradientTransformation:
    """Decay by the learning rate of each parameter to the configured power."""
    exponent = config.weight_decay_exponent
    factors = transforms.decay_factors(axes, options, config.decay_min_rank)
    for path in flatten(axes):
        if path in factors and path in options:
            factors[path] = options[path].lr_multiplier ** exponent
    return transforms.add_decay(lambda count: config.learning_rate(count) ** exponent, factors)


class SecondMomentState(NamedTuple):
    """Number of updates made (int32 scalar) and the average of squared gradients, shaped like the parameters."""

    count: jax.Array
    v: Any


def scale_by_second_moment(
    decay_exponent: float, epsilon: float, clipping_threshold: float | None, axes: AxesTree
) -> optax.GradientTransformation:
    """Divides by the root of an average of squares whose window grows with the step, and clips each layer's RMS.

    With b2 = 1 - k^-decay_exponent the first update has b2 = 0, so it is the sign of the gradient.
    """

    def init(params: Any) -> SecondMomentState:
        return SecondMomentState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(updates: Any, state: SecondMomentState, params: Any = None) -> tuple[Any, SecondMomentState]:
        count = optax.safe_increment(state.count)
        weight = moment_weight(count, decay_exponent)
        v = jax.tree.map(lambda g, v: (1.0 - weight) * v + weight * (jnp.square(g) + epsilon), updates, state.v)

        def normalize(path: str, g: jax.Array, v: jax.Array, names: Axes) -> jax.Array:
            return transforms.clip_to_rms(lambda g, v: g / jnp.sqrt(v), (g, v), names, clipping_threshold)

        return map_with_path(normalize, updates, v, axes), SecondMomentState(count, v)

    return optax.GradientTransformation(init, update)


def moment_weight(count: jax.Array, decay_exponent: float) -> jax.Array:
    """1 - b2 = k^-decay_exponent for the k-th update, without the rounding of a difference near 1."""
    return count.astype(jnp.float32) ** -decay_exponent
