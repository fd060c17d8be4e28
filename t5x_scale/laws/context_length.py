"""Loss over the length of context (Llama 2 Long, Xiong et al. 2023, 2309.16039): L(c) = (alpha/c)^beta + gamma.

Each size has its own constants; the larger a model, the more it gains from context.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Law, Values


@dataclasses.dataclass(frozen=True)
class ContextLength7B(Law):
    """L(c) = (25.4/c)^0.45 + 1.56 at c tokens of context, for the model of 7B."""

    name = "context_length_7b"
    source = "Xiong et al. 2023 (2309.16039), read in a public transcription"
    unit = "nats a token of its validation set, Llama-2 tokenizer"
    # The longest context of its models.
    domain = Domain(context_length=(1.0, 32768.0))

    alpha: float = constant(25.4)
    beta: float = constant(0.45)
    gamma: float = constant(1.56)

    def _value(self, *, context_length: Values) -> Values:
        return (self.alpha / context_length) ** self.beta + self.gamma


@dataclasses.dataclass(frozen=True)
class ContextLength13B(ContextLength7B):
    """Of 13B."""

    name = "context_length_13b"
    alpha: float = constant(19.5)
    beta: float = constant(0.48)
    gamma: float = constant(1.45)


@dataclasses.dataclass(frozen=True)
class ContextLength34B(ContextLength7B):
    """Of 34B."""

    name = "context_length_34b"
    alpha: float = constant(17.7)
    beta: float = constant(0.50)
    gamma: float = constant(1.41)


@dataclasses.dataclass(frozen=True)
class ContextLength70B(ContextLength7B):
    """Of 70B."""

    name = "context_length_70b"
    alpha: float = constant(17.9)
    beta: float = constant(0.51)
    gamma: float = constant(1.35)


LAWS = (ContextLength7B(), ContextLength13B(), ContextLength34B(), ContextLength70B())
