"""AdamW: Adam with decoupled weight decay (arXiv 1711.05101)."""

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
class AdamW:
    """AdamW; the defaults are those most large decoders were trained with (GPT-3, Llama, Pythia).

    Attributes:
      learning_rate: multiplies the Adam step and the decay.
      b1, b2: decay of the first and second moment.
      eps: added to the root of the second moment.
      weight_decay: the parameters shrink by `lr * weight_decay` of themselves at each step.
      decay_min_rank: parameters of fewer dimensions a layer (norm scales, biases) do not decay; 0: all decay.
      momentum_dtype: storage of the first moment, `float32` or `bfloat16`.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_min_rank: int = 2
    momentum_dtype: str = "float32"

    def __post_init__(self):
        check_config(self, b1=(0, 1), b2=(0, 1), eps=(0, math.inf), weight_decay=(0, math.inf))

    def make(self, axes: AxesTree, options: Options = NO_OPTIONS) -> optax.GradientTransformation:
        """See `interface.Optimizer`."""
        chain = optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.momentum_dtype),
            transforms.add_decay(self.weight_decay, transforms.decay_factors(axes, options, self.decay_min_rank)),
            optax.scale_by_learning_rate(self.learning_rate),
            transforms.scale_leaves(options),
        )
        return transforms.in_float32(chain, axes)

    def state_axes(self, abstract_params: Params, axes: AxesTree) -> Any:
        """See `interface.Optimizer`."""
        return matching_state_axes(self.make(axes), abstract_params, axes)
