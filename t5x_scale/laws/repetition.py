"""To repeat or not to repeat (Xue et al. 2023): T5 on C4.

A rule and no curve: repeating more than about four to eight times hurts, larger models overfit earlier, and dropout of
0.1 to 0.2, if need be only towards the end, is the regulariser that helps. `data_constrained` says by how much.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.laws.constants import constant
from t5x_scale.laws.interface import Law, Values


@dataclasses.dataclass(frozen=True)
class RepetitionLimit(Law):
    """The epochs up to which repetition is harmless; `worst_epochs` is where it certainly hurts."""

    name = "repetition_limit"
    source = "Xue et al. 2023"
    predicts = "epochs"
    unit = "epochs of C4"
    form_confidence = "medium"

    safe_epochs: float = constant(4.0, confidence="medium")
    worst_epochs: float = constant(8.0, confidence="medium")
    least_dropout: float = constant(0.1, confidence="medium")
    most_dropout: float = constant(0.2, confidence="medium")

    def _value(self) -> Values:
        return self.safe_epochs

    def advice(self, epochs: float) -> str:
        """What the paper would say about so many epochs; empty where it has nothing against them."""
        if epochs <= self.safe_epochs:
            return ""
        dropout = f"dropout of {self.least_dropout:g} to {self.most_dropout:g}"
        if epochs <= self.worst_epochs:
            return f"{epochs:.3g} epochs begin to hurt, large models first: try {dropout}"
        return f"{epochs:.3g} epochs hurt: use more data, a smaller model, or {dropout}"


LAWS = (RepetitionLimit(),)
