"""Fine-grained experts (Krajewski et al. 2024, 2402.07871): many small experts, and what routing to them costs.

Granularity G cuts every expert into G, of which G times as many are chosen: the active parameters stay what they were.
Loss only falls with G; the cost of routing (`routing_flops`) is what makes one G the best. Everything was fitted at 64
experts' worth of parameters a layer (expansion 64).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from t5x_scale.laws.bounded import COUNT, BoundedLaw
from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import checked_budget, minimise
from t5x_scale.laws.interface import Law, Optimum, Values

EXPANSION = 64.0

# FLOPs a parameter and token in the network, and in the router (appendix E).
NETWORK_COST, ROUTING_COST = 6.0, 14.0

# Width over depth of the models that the paper allocates (section 6.1).
_WIDTH_PER_LAYER = 64.0


def active_params(params: Values, expansion: float = EXPANSION) -> Values:
    """Parameters that a token meets, 12·n·d², of all of them, (8·expansion + 4)·n·d²; neither counts embeddings."""
    return params * 12 / (8 * expansion + 4)


def training_flops(params: Values, tokens: Values, granularity: Values, expansion: float = EXPANSION) -> Values:
    """F = (12·d²·c_f + d·expansion·G·c_r)·n·D, of models 64 times as wide as they are deep (equation 10)."""
    active = active_params(params, expansion)
    layers = (active / (12 * _WIDTH_PER_LAYER**2)) ** (1 / 3)
    width = _WIDTH_PER_LAYER * layers
    routing = width * layers * expansion * granularity
    return (NETWORK_COST * active + ROUTING_COST * routing) * tokens


@dataclasses.dataclass(frozen=True)
class FineGrained(BoundedLaw):
    """L(N, D, G) = c + (g/G^gamma + a)/N^alpha + b/D^beta.

    `params` are all of them, of 64 experts' worth. The paper's table 2, whose losses this meets within 0.025, was
    computed from constants with more digits.
    """

    name = "fine_grained_moe"
    source = "Krajewski et al. 2024 (2402.07871), equation 9, table 1"
    unit = "nats a token of C4, GPT-2 tokenizer"
    domain = Domain(params=(129e6, 3.7e9), tokens=(16e9, 130e9), granularity=(1.0, 16.0))
    with_embeddings = False
    bounds = Domain(granularity=COUNT)

    a: float = constant(18.1)
    alpha: float = constant(0.115)
    b: float = constant(30.8)
    beta: float = constant(0.147)
    g: float = constant(2.1)
    gamma: float = constant(0.58)
    c: float = constant(0.47)

    def _value(self, *, params: Values, tokens: Values, granularity: Values = 1.0) -> Values:
        return self.c + (self.g / granularity**self.gamma + self.a) / params**self.alpha + self.b / tokens**self.beta

    def _optimum(self, **budget: float) -> Optimum:
        """The best params, tokens and granularity (a power of two up to 128) for `flops`, routing included; of one
        `granularity` if that is given."""
        given = checked_budget(self, budget, ("flops",), ("granularity",))
        choices = [given["granularity"]] if "granularity" in given else [2.0**power for power in range(8)]
        return min((self._at(given["flops"], choice) for choice in choices), key=lambda found: found["loss"])

    def _at(self, flops: float, granularity: float) -> Optimum:
        def tokens(params: Values) -> Values:
            return flops / training_flops(params, 1.0, granularity)

        params = minimise(
            lambda n: self.predict(params=n, tokens=tokens(n), granularity=granularity), 1e3, max(flops / 1e3, 1e4)
        )
        values = {"params": params, "tokens": tokens(params), "granularity": granularity}
        active = {"active_params": active_params(params)}
        return Optimum(
            {"flops": flops, **values, **active, "loss": self.predict(**values)},
            self.name,
            tuple(self.outside(**values)),
        )


@dataclasses.dataclass(frozen=True)
class KrajewskiDense(Law):
    """L(N, D) = c + a/N^alpha + b/D^beta, of the dense models trained beside them."""

    name = "fine_grained_dense"
    source = FineGrained.source
    unit = FineGrained.unit
    domain = Domain(tokens=FineGrained.domain.ranges["tokens"])
    with_embeddings = False

    a: float = constant(16.3)
    alpha: float = constant(0.126)
    b: float = constant(26.7)
    beta: float = constant(0.127)
    c: float = constant(0.47)

    def _value(self, *, params: Values, tokens: Values) -> Values:
        return self.c + self.a / params**self.alpha + self.b / tokens**self.beta


def experts(expansion: float, granularity: float) -> tuple[float, float]:
    """(experts in a layer, experts that a token goes to): expansion·G and G."""
    return expansion * granularity, granularity


# (active parameters, tokens, granularity, FLOPs, loss): table 2, optimal configurations of 64 experts' worth.
PUBLISHED_OPTIMA: Sequence[tuple[float, float, float, float, float]] = (
    (100e6, 4.37e9, 8, 2.95e18, 3.133),
    (1e9, 28.94e9, 16, 1.93e20, 2.491),
    (3e9, 72.90e9, 16, 1.41e21, 2.245),
    (7e9, 137.60e9, 32, 6.46e21, 2.076),
    (70e9, 941.07e9, 32, 4.16e23, 1.694),
    (300e9, 2.96e12, 64, 5.69e24, 1.503),
    (1e12, 7.94e12, 64, 4.97e25, 1.367),
)

LAWS = (FineGrained(), KrajewskiDense())
