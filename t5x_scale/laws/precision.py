"""Precision (Kumar et al. 2024, 2411.04330): bits of training as a share of the parameters, and bits cut after it.

Weights, activations and KV cache trained in few bits leave N_eff = N·Π(1 - exp(-P/gamma + n)) of the parameters.
Quantising weights after training adds a loss that grows with tokens: more training can make a quantised model worse.

The text of the paper omits the biases n (and b); its appendix K states their values, not their sign. With this one,
activations of 3 bits leave nothing, as its runs diverged there, and the compute-optimal precision comes out at 7.0
bits, where the paper says 7 to 8; with the other it would be below 3. The authors call their trends the finding, and
the constants unlikely to be useful elsewhere.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_scale.laws.constants import constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.frontier import checked_budget, minimise
from t5x_scale.laws.interface import Law, Optimum, Values

_READING = "medium"

# Training costs 6·N·D FLOPs in 16 bits, and in proportion to bits (equation 5): counted in FLOPs of 16 bits.
FULL_BITS = 16.0
FLOPS_PER_BIT = 6.0 / FULL_BITS


@dataclasses.dataclass(frozen=True)
class Precision(Law):
    """L = A/N_eff^alpha + B/D^alpha + E, + C_T·D^gamma_D/N_eff^gamma_N·exp(-P/gamma_post + b) at `post_bits` P.

    The last term is of weights trained in 16 bits and then quantised (equation 2); alpha is tied.
    """

    name = "precision"
    source = "Kumar et al. 2024 (2411.04330), equations 2 to 4, table 2"
    unit = "nats a token of Dolma 1.7"
    # 465 runs; checked up to 1.7B parameters.
    domain = Domain(
        params=(30e6, 220e6),
        tokens=(1.5e9, 26e9),
        weight_bits=(3.0, 16.0),
        activation_bits=(4.0, 16.0),
        cache_bits=(4.0, 16.0),
        post_bits=(3.0, 16.0),
    )
    with_embeddings = False

    A: float = constant(4.299e3)
    B: float = constant(1.806e4)
    E: float = constant(2.7648)
    alpha: float = constant(0.4965)
    gamma_w: float = constant(2.6745)
    n_w: float = constant(0.3037, confidence=_READING, signed=True)
    gamma_a: float = constant(2.2102)
    n_a: float = constant(1.4072, confidence=_READING, signed=True)
    gamma_kv: float = constant(0.9578)
    n_kv: float = constant(2.4185, confidence=_READING, signed=True)
    C_T: float = constant(0.0598)
    gamma_D: float = constant(0.5068)
    gamma_N: float = constant(0.3439)
    gamma_post: float = constant(0.5907)
    b: float = constant(1.1277, confidence=_READING, signed=True)

    def _value(
        self,
        *,
        params: Values,
        tokens: Values,
        weight_bits: Values = FULL_BITS,
        activation_bits: Values = FULL_BITS,
        cache_bits: Values = FULL_BITS,
        post_bits: Values = np.inf,
    ) -> Values:
        useful = params * self.effective_share(weight_bits, activation_bits, cache_bits)
        with np.errstate(divide="ignore"):
            trained = self.A / useful**self.alpha + self.B / tokens**self.alpha + self.E
            return trained + self.cost_of_quantising(useful, tokens, post_bits)

    def effective_share(self, weight_bits: Values, activation_bits: Values, cache_bits: Values) -> Values:
        """N_eff/N; 0 where one of the three is too coarse to train."""
        parts = (
            (weight_bits, self.gamma_w, self.n_w),
            (activation_bits, self.gamma_a, self.n_a),
            (cache_bits, self.gamma_kv, self.n_kv),
        )
        shares = [np.maximum(1 - np.exp(-np.asarray(bits) / gamma + n), 0.0) for bits, gamma, n in parts]
        return shares[0] * shares[1] * shares[2]

    def cost_of_quantising(self, params: Values, tokens: Values, post_bits: Values) -> Values:
        """What weights of `post_bits` add to the loss of a model trained in full."""
        lost = np.exp(-np.asarray(post_bits) / self.gamma_post + self.b)
        # A model without useful parameters loses all there is to lose whatever its bits.
        grown = self.C_T * tokens**self.gamma_D / np.maximum(params, 1e-300) ** self.gamma_N
        return grown * lost

    def _optimum(self, **budget: float) -> Optimum:
        """The best params, tokens and bits, one number for all three, for `flops` of 16 bits; or at given `bits`.

        With one alpha the loss depends on N_eff·D alone, so the best bits do not depend on the budget.
        """
        given = checked_budget(self, budget, ("flops",), ("bits",))
        bits = given.get("bits") or minimise(lambda p: -self.effective_share(p, p, p) / p, 2.0, FULL_BITS)
        product = given["flops"] / (FLOPS_PER_BIT * bits)
        share = float(self.effective_share(bits, bits, bits))
        params = minimise(
            lambda n: self.A / (n * share) ** self.alpha + self.B / (product / n) ** self.alpha, 1.0, product
        )
        values = {"params": params, "tokens": product / params}
        each = {"weight_bits": bits, "activation_bits": bits, "cache_bits": bits}
        return Optimum(
            {"flops": given["flops"], "bits": bits, **values, **each, "loss": self.predict(**values, **each)},
            self.name,
            tuple(self.outside(**values, **each)),
        )

    def most_useful_tokens(self, params: float, post_bits: float) -> float:
        """Tokens beyond which more training makes the quantised model worse."""
        # Where B·alpha/D^alpha = gamma_D·delta(D): both are powers of D.
        cost = float(self.cost_of_quantising(params, 1.0, post_bits))
        return (self.B * self.alpha / (self.gamma_D * cost)) ** (1 / (self.alpha + self.gamma_D))


LAWS = (Precision(),)
