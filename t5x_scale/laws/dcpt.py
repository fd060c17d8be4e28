"""D-CPT (Que et al. 2024, 2406.01375): continued training on a domain, and how much of it the general loss allows.

One form for both losses: of the domain in its share r_d, of general text in r_g = 1 - r_d. The constants of the paper
are not known to us; the row of its table 5 is (`PUBLISHED_ROW`), and the law fitted to it finds the published share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws.bounded import SHARE, BoundedLaw
from t5x_scale.laws.constants import unpublished
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import checked_budget, solve
from t5x_scale.laws.interface import Optimum, Values

_SOURCE = "Que et al. 2024 (2406.01375)"


@dataclasses.dataclass(frozen=True)
class Dcpt(BoundedLaw):
    """L(N, D, r) = E + A/N^alpha + B·r^eta/D^beta + C/(r + epsilon)^gamma, r the share of the text it is the loss of.

    Fitted on Qwen-1.5 from 0.5B to 4B parameters, six domains.
    """

    name = "dcpt"
    source = _SOURCE
    unit = "nats a token of the text whose share it is, Qwen-1.5 tokenizer"
    domain = Domain(params=(0.5e9, 4e9), ratio=SHARE)
    may_be_zero = frozenset({"ratio"})
    bounds = Domain(ratio=SHARE)

    E: float = unpublished(1.5)
    A: float = unpublished(100.0)
    alpha: float = unpublished(0.3)
    B: float = unpublished(100.0)
    eta: float = unpublished(1.0, signed=True)
    beta: float = unpublished(0.3)
    C: float = unpublished(0.1)
    epsilon: float = unpublished(0.05)
    gamma: float = unpublished(0.5)

    def _value(self, *, params: Values, tokens: Values, ratio: Values) -> Values:
        scale = self.E + self.A / params**self.alpha + self.B * ratio**self.eta / tokens**self.beta
        return scale + self.C / (ratio + self.epsilon) ** self.gamma

    def _optimum(self, **budget: float) -> Optimum:
        """Of a law of the general loss: the largest domain share that keeps it at `cap` or below, at params and tokens.

        Where the domain's loss falls with its share this is the best mixture; `ratio` is the share of general text.
        """
        given = checked_budget(self, budget, ("params", "tokens", "cap"))
        scale = {name: given[name] for name in ("params", "tokens")}
        share = domain_share_under_cap(lambda ratio: self.predict(ratio=ratio, **scale), given["cap"])
        values = {**given, "domain_ratio": share, "ratio": 1 - share}
        return Optimum(
            {**values, "loss": self.predict(ratio=1 - share, **scale)}, self.name, tuple(self.outside(**values))
        )


@dataclasses.dataclass(frozen=True)
class CrossDomainDcpt(Dcpt):
    """The same + F/K^mu, one law for many domains: K = `learnability` is how well one is learnt, from short runs."""

    name = "dcpt_cross_domain"
    source = f"{_SOURCE}, cross-domain form"

    F: float = unpublished(1.0)
    mu: float = unpublished(0.5)

    def _value(self, *, params: Values, tokens: Values, ratio: Values, learnability: Values) -> Values:
        within = super()._value(params=params, tokens=tokens, ratio=ratio)
        return within + self.F / learnability**self.mu

    def _optimum(self, **budget: float) -> Optimum:
        """As `Dcpt`, with the learnability of the general text."""
        given = checked_budget(self, budget, ("params", "tokens", "cap", "learnability"))
        scale = {name: given[name] for name in ("params", "tokens", "learnability")}
        share = domain_share_under_cap(lambda ratio: self.predict(ratio=ratio, **scale), given["cap"])
        values = {**given, "domain_ratio": share, "ratio": 1 - share}
        return Optimum(
            {**values, "loss": self.predict(ratio=1 - share, **scale)}, self.name, tuple(self.outside(**values))
        )


@dataclasses.dataclass(frozen=True)
class ShareLoss(BoundedLaw):
    """L(r) = E + C/(r + epsilon)^gamma: D-CPT at one size and number of tokens, for a sweep of shares alone."""

    name = "dcpt_share"
    source = Dcpt.source
    unit = Dcpt.unit
    domain = Domain(ratio=SHARE)
    may_be_zero = Dcpt.may_be_zero
    bounds = Dcpt.bounds

    E: float = unpublished(2.0)
    C: float = unpublished(0.1)
    epsilon: float = unpublished(0.03)
    gamma: float = unpublished(0.5)

    def _value(self, *, ratio: Values) -> Values:
        return self.E + self.C / (ratio + self.epsilon) ** self.gamma


def domain_share_under_cap(general_loss: Callable[[Values], Values], cap: float) -> float:
    """The largest domain share at which `general_loss` of the share of general text is at most `cap`.

    Raises:
      UserError: if it is above the cap even without any domain.
    """
    shares = np.linspace(0.0, 1.0, 1001)
    allowed = np.flatnonzero(general_loss(shares) <= cap)
    if len(allowed) == 0:
        lowest = float(np.min(general_loss(shares)))
        raise UserError(f"no mixture has a general loss of {cap:.4g} or below; the least is {lowest:.4g}")
    first = int(allowed[0])
    if first == 0:
        return 1.0
    low = max(shares[first - 1], math.ulp(1.0))
    if float(general_loss(low)) <= cap:
        return 1.0 - float(low)
    return 1.0 - solve(lambda share: float(general_loss(share)) - cap, float(low), float(shares[first]))


def measured_share_under_cap(shares: Sequence[float], general_losses: Sequence[float], cap: float) -> float:
    """The largest domain share whose general loss is at most `cap`, between measured shares on straight lines."""
    order = np.argsort(shares)
    x, y = np.asarray(shares, float)[order], np.asarray(general_losses, float)[order]
    allowed = np.flatnonzero(y <= cap)
    if len(allowed) == 0:
        raise UserError(f"a general loss of at most {cap:.4g} was not measured; the least is {y.min():.4g}")
    last = int(allowed[-1])
    if last == len(x) - 1:
        return float(x[-1])
    return float(np.interp(cap, y[last : last + 2], x[last : last + 2]))


@dataclasses.dataclass(frozen=True)
class Row:
    """Losses [shares] measured after continued training with several domain shares, and before it."""

    shares: tuple[float, ...]
    general: tuple[float, ...]
    of_domain: tuple[float, ...]
    base_general: float
    cap: float
    chosen: float


# Table 5, by transcription: chemistry, Qwen-1.5 1.8B, 10B tokens; the general loss may rise by 3 %.
PUBLISHED_ROW = Row(
    shares=(0.9, 0.91, 0.92, 0.924, 0.93, 0.94, 1.0),
    general=(2.9052, 2.9193, 2.9376, 2.9445, 2.9644, 2.9848, 3.4667),
    of_domain=(1.7321, 1.7312, 1.7311, 1.7291, 1.7279, 1.7265, 1.7220),
    base_general=2.8602,
    cap=2.9460,
    chosen=0.924,
)

LAWS = (Dcpt(), CrossDomainDcpt(), ShareLoss())
