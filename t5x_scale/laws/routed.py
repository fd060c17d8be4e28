"""Routed language models (Clark et al. 2022, 2202.01169): loss in the size of the dense parent and the experts.

All of it after 130B tokens. Logarithms are base 10: so the constants give 2.24 nats at 1.3B parameters, with natural
logarithms 0.57. The paper's N_cutoff, beyond which experts stop helping, is 10^(-b/c); rounded constants move it by
orders of magnitude (1e12, 3e10, 2e11 where the paper has 937B, 85B, 83B), so it is not offered. That such a size exists
at all is an artefact of the fixed number of tokens, say Krajewski et al. (see `fine_grained`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_scale.laws.bounded import COUNT, BoundedLaw
from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Law, Values

_SOURCE = "Clark et al. 2022 (2202.01169)"


def effective_experts(experts: Values, start: Values, most: Values) -> Values:
    """Ê: a number of experts that begins at `start` for one expert and saturates at `most`."""
    return 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / most)) + 1 / most)


@dataclasses.dataclass(frozen=True)
class SBase(BoundedLaw):
    """log L = a·log N + b·log Ê + c·log N·log Ê + d, routed by solving a balanced assignment (S-BASE).

    `params` are those of the dense parent, of which one expert stands for each of its feed-forward layers.
    """

    name = "clark_s_base"
    source = _SOURCE
    unit = "nats a token of MassiveText after 130B tokens"
    domain = Domain(params=(15e6, 1.3e9), experts=(1.0, 512.0))
    bounds = Domain(experts=COUNT)

    a: float = constant(-0.082, signed=True)
    b: float = constant(-0.108, signed=True)
    c: float = constant(0.009, signed=True)
    d: float = constant(1.104, signed=True)
    E_start: float = constant(1.847)
    E_max: float = constant(314.478)

    def _value(self, *, params: Values, experts: Values = 1.0) -> Values:
        n, e = np.log10(params), self._log_experts(experts)
        return 10 ** (self.a * n + self.b * e + self.c * n * e + self.d)

    def effective_params(self, params: Values, experts: Values) -> Values:
        """N̄: the size of the dense model that is as good, where L(N̄, 1) = L(N, E)."""
        n, e, one = np.log10(params), self._log_experts(experts), self._log_experts(1.0)
        return 10 ** ((self.a * n + self.b * (e - one) + self.c * n * e) / (self.a + self.c * one))

    def _log_experts(self, experts: Values) -> Values:
        return np.log10(effective_experts(experts, self.E_start, self.E_max))


@dataclasses.dataclass(frozen=True)
class ReinforcedRouting(SBase):
    """The same law for routing by reinforcement learning (RL-R)."""

    name = "clark_rl_r"

    a: float = constant(-0.083, signed=True)
    b: float = constant(-0.126, signed=True)
    c: float = constant(0.012, signed=True)
    d: float = constant(1.111, signed=True)
    E_start: float = constant(1.880)
    E_max: float = constant(469.982)


@dataclasses.dataclass(frozen=True)
class HashRouting(SBase):
    """The same law for routing by a fixed hash of the token (HASH)."""

    name = "clark_hash"

    a: float = constant(-0.087, signed=True)
    b: float = constant(-0.136, signed=True)
    c: float = constant(0.012, signed=True)
    d: float = constant(1.157, signed=True)
    E_start: float = constant(4.175)
    E_max: float = constant(477.741)


@dataclasses.dataclass(frozen=True)
class ClarkDense(Law):
    """L(N) = (N_c/N)^alpha_N, of their dense models alone."""

    name = "clark_dense"
    source = f"{_SOURCE}, dense models"
    unit = SBase.unit
    domain = Domain(params=(15e6, 1.3e9))

    N_c: float = constant(3.568e13)
    alpha_N: float = constant(0.078)

    def _value(self, *, params: Values) -> Values:
        return (self.N_c / params) ** self.alpha_N


LAWS = (SBase(), ReinforcedRouting(), HashRouting(), ClarkDense())
