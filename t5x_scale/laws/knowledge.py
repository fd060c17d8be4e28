"""Knowledge capacity (Allen-Zhu & Li 2024, 2404.05405): about two bits a parameter, if every fact is seen often.

A fact seen 1000 times can be stored at 2 bits a parameter, one seen 100 times at 1. Between the two the capacity is
taken to be linear in the logarithm of exposures, which is ours, as is everything outside of them. 7/8 of junk among the
data can cost a factor of 20 at 100 exposures; a domain name before each text mends most of it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws.bounded import COUNT, BoundedLaw
from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Values

_SOURCE = "Allen-Zhu & Li 2024 (2404.05405)"
_NOTES = "medium"

# bioS(N): values of a person's attributes: pronoun, month, day and year of birth, and the six named below.
BIOS_ATTRIBUTES = {
    "pronoun": 2,
    "birth month": 12,
    "birth day": 28,
    "birth year": 200,
    "birth city": 200,
    "university": 300,
    "major": 100,
    "employer": 263,
}
BIOS_NAMES = 400 * 400 * 1000


@dataclasses.dataclass(frozen=True)
class KnowledgeCapacity(BoundedLaw):
    """bits = params·R(exposures)·(quantisation)·(mixture), R from `scarce` at 100 exposures to `rich` at 1000.

    `params` are all that are stored, of all experts; `weight_bits` below 8 lose: int8 keeps 2 bits, int4 0.7, and other
    widths below 8 were not measured. With experts the capacity is `mixture` times less (32 of them, of which a token
    uses 8.8 % of the parameters).
    """

    name = "knowledge_capacity"
    source = _SOURCE
    predicts = "bits"
    unit = "bits of knowledge"
    domain = Domain(exposures=(100.0, 1000.0), weight_bits=(4.0, 32.0), experts=(1.0, 32.0))
    bounds = Domain(experts=COUNT, exposures=COUNT)

    rich: float = constant(2.0)
    scarce: float = constant(1.0)
    int4: float = constant(0.7, confidence=_NOTES)
    mixture: float = constant(1.3, confidence=_NOTES)

    def _value(
        self, *, params: Values, exposures: Values = 1000.0, weight_bits: Values = 16.0, experts: Values = 1.0
    ) -> Values:
        width = np.asarray(weight_bits)
        if np.any((width < 8) & (width != 4)):
            raise UserError(f"the law {self.name} knows weight_bits of 4 and of 8 or more; got {weight_bits}")
        per_param = self.bits_per_param(exposures)
        kept = np.where(width < 8, self.int4 / self.rich, 1.0)
        return params * per_param * kept / np.where(np.asarray(experts) > 1, self.mixture, 1.0)

    def bits_per_param(self, exposures: Values) -> Values:
        """R: never above `rich`, and nothing where the line reaches it."""
        share = (np.log10(exposures) - 2.0) / (3.0 - 2.0)
        return np.clip(self.scarce + (self.rich - self.scarce) * share, 0.0, self.rich)

    def params_for(self, bits: float, exposures: float = 1000.0) -> float:
        """Parameters that hold so many bits."""
        return bits / float(self.bits_per_param(exposures))


@dataclasses.dataclass(frozen=True)
class GatedKnowledgeCapacity(KnowledgeCapacity):
    """The same for gated feed-forward layers (LLaMA, Mistral), which hold 1.3 times less at 100 exposures."""

    name = "knowledge_capacity_gated"

    scarce: float = constant(1.0 / 1.3, confidence=_NOTES)


def attribute_bits() -> float:
    """log2 S0: bits that the attributes of one person of bioS hold, 47.59."""
    return sum(math.log2(values) for values in BIOS_ATTRIBUTES.values())


def stored_bits(
    people: float,
    name_loss: float,
    value_loss: float,
    value_bits: float | None = None,
    names: float = BIOS_NAMES,
) -> float:
    """Bits that a model holds of `people`, by its losses: N·log2(N0/e^p1) + N·log2(S0/e^p2).

    Args:
      name_loss: p1, cross entropy of a name, summed over its tokens, in nats.
      value_loss: p2, of all values of a person given the name, summed, in nats.
      value_bits: log2 of the number of different persons, S0; of bioS if None.
      names: N0, the number of different names.
    """
    of_names = math.log2(names) - name_loss / math.log(2)
    of_values = (attribute_bits() if value_bits is None else value_bits) - value_loss / math.log(2)
    return people * (of_names + of_values)


LAWS = (KnowledgeCapacity(), GatedKnowledgeCapacity())
