"""Do only trainable parameters count? ("Is the number of trainable parameters all that matters?")

Frozen parameters, random or with a fast structure, leave the law of loss and compute where it was, says the abstract,
all that we have of the paper. So a model is worth what a dense law says of its trainable parameters. `weight`, what a
frozen parameter is worth, is 0 by the paper, and is what a fit to one's own frozen models finds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from t5x_scale.laws.constants import constant
from t5x_scale.laws.frontier import quantity_for
from t5x_scale.laws.interface import Law, Values


@dataclasses.dataclass(frozen=True)
class TrainableParams(Law):
    """The dense model that is as good has N + weight·F parameters, of N `trainable_params` and F `frozen_params`.

    Data to fit it come from runs by `worth`, with a law that was fitted to models without frozen parameters.
    """

    name = "trainable_params"
    source = "Is the number of trainable parameters all that matters?, abstract"
    predicts = "effective_params"
    unit = "parameters of a dense model"
    form_confidence = "low"
    may_be_zero = frozenset({"frozen_params"})

    weight: float = constant(0.0, confidence="medium", signed=True)

    def _value(self, *, trainable_params: Values, frozen_params: Values = 0.0) -> Values:
        return trainable_params + self.weight * frozen_params


def worth(dense: Law, losses: Sequence[float], tokens: Sequence[float]) -> np.ndarray:
    """[runs] parameters with which a dense law reaches the loss of each run on its tokens.

    Raises:
      UserError: for a loss that no size from 1 to 1e18 parameters has.
    """
    pairs = zip(losses, tokens, strict=True)
    return np.array([quantity_for(dense, "params", loss, 1.0, 1e18, tokens=seen) for loss, seen in pairs])


LAWS = (TrainableParams(),)
