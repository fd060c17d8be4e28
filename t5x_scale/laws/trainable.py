"""Do only trainable parameters count? ("Is the number of trainable parameters all that matters?")

Frozen parameters, random or with a fast structure, leave the law of loss and compute where it was, says the abstract,
all that we have of the paper. So a model is worth what a dense law says of its trainable parameters; `weight`, which is
0 by the paper, is what a frozen parameter is worth, and is what a fit to one's own frozen models finds.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.laws.besiroglu import Besiroglu
from t5x_scale.laws.interface import Law, Values, constant


@dataclasses.dataclass(frozen=True)
class TrainableParams(Law):
    """L = base(N + weight·F, D), with N `trainable_params`, F `frozen_params` and a law `base` of params and tokens.

    First fit a law to models without frozen parameters and give it as `fixed={"base": law}`; then this finds `weight`.
    """

    name = "trainable_params"
    source = "Is the number of trainable parameters all that matters?, abstract"
    form_confidence = "low"
    may_be_zero = frozenset({"frozen_params"})

    weight: float = constant(0.0, confidence="medium", signed=True)
    base: Law = Besiroglu()

    def _value(self, *, trainable_params: Values, tokens: Values, frozen_params: Values = 0.0) -> Values:
        return self.base._value(params=self.effective_params(trainable_params, frozen_params), tokens=tokens)

    def effective_params(self, trainable_params: Values, frozen_params: Values) -> Values:
        """N + weight·F."""
        return trainable_params + self.weight * frozen_params


LAWS = (TrainableParams(),)
