"""Lion: the sign of an interpolated momentum, with decoupled decay (arXiv 2302.06675)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import optax

from t5x_scale.optim import transforms
from t5x_scale.optim.interface import (
    NO_OPTIONS,
    AxesTree,
    Options,
    Params,
    Schedule,
    check_config,
    matching_state_axes,
)


@dataclasses.dataclass(frozen=True)
class Lion:
    """Lion. One moment instead of Adam's two; wants a rate 3 to 10 times smaller, and a decay as much larger.

    Attributes:
      learning_rate: the size of every element's step, and the decay's factor.
      b1: weight of the momentum in the sign.
      b2: decay of the momentum.
      weight_decay: the parameters shrink by `lr * weight_decay` of themselves at each step.
      decay_min_rank: parameters of fewer dimensions a layer (norm scales, biases) do not decay; 0: all decay.
      momentum_dtype: storage of the momentum, `float32` or `bfloat16`.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1.0
    decay_min_rank: int = 2
    momentum_dtype: str = "float32"

    def __post_init__(self):
        check_config(self, b1=(0, 1), b2=(0, 1), weight_decay=(0, math.inf))

    def make(self, axes: AxesTree, options: Options = NO_OPTIONS) -> optax.GradientTransformation:
        """See `interface.Optimizer`."""
        chain = optax.chain(
            optax.scale_by_lion(self.b1, self.b2, mu_dtype=self.momentum_dtype),
            transforms.add_decay(self.weight_decay, transforms.decay_factors(axes, options, self.decay_min_rank)),
            optax.scale_by_learning_rate(self.learning_rate),
            transforms.scale_leaves(options),
        )
        return transforms.in_float32(chain, axes)

    def state_axes(self, abstract_params: Params, axes: AxesTree) -> Any:
        """See `interface.Optimizer`."""
        return matching_state_axes(self.make(axes), abstract_params, axes)
