"""Experts made of the feed-forward layers of a dense model, so that training goes on from where it was.

Every block gets experts. Where papers gave them to every other block only, the numbers they report are for that.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.leaves import Leaf, Leaves
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.weights import Weights
from t5x_scale.surgery import draws
from t5x_scale.surgery.checks import check_at_least, check_divides, check_range
from t5x_scale.surgery.feed_forward import (
    check_dense,
    expert_axes,
    make_router,
    split_neurons,
    sums_to_one,
    to_sparse,
    with_experts,
)
from t5x_scale.surgery.interface import Change, Slot, Surgery


@dataclasses.dataclass(frozen=True)
class Upcycle(Surgery):
    """Sparse upcycling (Komatsuzaki et al. 2022, arXiv 2212.05055): every expert a copy of the dense layer.

    With gates that sum to 1 over the chosen experts the function is unchanged, whatever the router says, because all
    experts are equal. They then differ by the tokens they see, or from the start by `noise` or `drop`.

    The paper starts the optimiser afresh for language models and draws the router with standard deviation 0.02. Of a
    state that is mapped, experts have the moments of the dense layer. An expert sees a part of the tokens with a gate
    below 1, so its gradients are smaller and the first steps too, never larger.

    Attributes:
      num_experts: copies.
      num_experts_per_token: of them that a token passes through.
      router: see `Architecture`.
      normalize_gates: of `softmax_topk`: gates that sum to 1. The paper does without for language models, and the
        output of the layer then falls to the sum of the chosen gates.
      router_stddev: standard deviation of the router.
      noise: standard deviation of noise on the copies, relative to that of each layer's matrix.
      noise_share: share of the elements that receive it.
      drop: share of each expert's neurons that are drawn anew, to the mean and standard deviation of the layer's
        matrices (Drop-Upcycling, Nakamura et al. 2025, arXiv 2502.19261; 0.5 served them best in the long run).
      seed: of the router, the noise and what is dropped.
    """

    num_experts: int
    num_experts_per_token: int = 2
    router: str = "softmax_topk"
    normalize_gates: bool = True
    router_stddev: float = 0.02
    noise: float = 0.0
    noise_share: float = 1.0
    drop: float = 0.0
    seed: int = 0
    optimizer: str = dataclasses.field(default="reset", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 2, "num_experts")
        check_range(self, 0.0, math.inf, "router_stddev", "noise")
        check_range(self, 0.0, 1.0, "noise_share", "drop")

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same with experts as wide as the dense layer."""
        return to_sparse(architecture, self, architecture.config.mlp_dim)

    def make_change(self, weights: Weights) -> Change:
        """See `Surgery.make_change`."""
        architecture = self.need_architecture(weights.architecture)
        check_dense(self, architecture)
        shape = (architecture.config.num_layers, self.num_experts, architecture.config.mlp_dim)
        dropped = draws.choose_neurons(shape, self.drop, self.seed)

        def change(leaves: Leaves, slot: Slot) -> Leaves:
            experts = with_experts(leaves, lambda name, leaf: self._copy(name, leaf, slot, dropped))
            return experts | make_router(leaves, slot, range(self.num_experts), self.router_stddev, self.seed)

        return change

    def _copy(self, name: str, leaf: Leaf, slot: Slot, dropped: np.ndarray) -> Leaf:
        """The experts' matrices [layers, expert, ...] of one dense matrix."""
        array = lazy.take(lazy.expand(leaf.array, 1), 1, [0] * self.num_experts)
        detail = f"{self.num_experts} copies"
        if slot.is_parameters and self.noise:
            array = draws.add_noise(array, leaf.array, self.noise, self.noise_share, self.seed, name)
            detail += f", noise of {self.noise:g} on {self.noise_share:g} of each"
        if self.drop and not slot.is_second_moment:
            array = self._drop(name, array, leaf.array, slot, dropped)
            detail += f", {self.drop:g} of the neurons drawn anew"
        kind = "grown" if self.noise or self.drop else "copied"
        return Leaf(array, expert_axes(name), leaf.origin.then(kind, detail))

    def _drop(self, name: str, array: LazyArray, dense: LazyArray, slot: Slot, dropped: np.ndarray) -> LazyArray:
        """The matrices with the dropped neurons drawn anew; first moments of them are zero."""
        across = expert_axes(name).index("embed")
        mask = draws.spread(dropped, across, array.shape[across])
        if slot.is_parameters:
            new = draws.normal_like(array.shape, dense, False, self.seed, f"{name}/drop")
        else:
            new = lazy.full(array.shape, np.float32)
        return lazy.elementwise(lambda values, new, mask: np.where(mask, new, values), array, new, mask)


@dataclasses.dataclass(frozen=True)
class VirtualGroups(Surgery):
    """Upcycling to fine-grained experts (He et al. 2024, arXiv 2410.07524): shards of the dense layer, tiled.

    The neurons are split into G shards, each an expert, and all shards are there E' times. The shards of one copy share
    a column of the router, so a token that chooses k experts, k a multiple of G, chooses whole copies.

    The gates then weigh down what was added up, by a factor that stands against it in the weights:

        a = E' G^2 / k    softmax before the choice: k of the E' G experts hold about k / (E' G) of the gates
        a = G             softmax among the chosen, or gates divided by their sum

    The paper spreads it over the matrices: each is multiplied by the cube root of a where the layer has three of them
    or squares (SwiGLU, squared ReLU), else by the square root. Since the activation is not homogeneous the function is
    nearly, not exactly, kept. `exact` puts all of it on the output matrix.

    Attributes:
      granularity: G.
      num_experts: E' G.
      num_experts_per_token: k.
      router: see `Architecture`; the paper found `softmax_topk` better.
      normalize_gates: of `softmax_topk`: gates that sum to 1.
      exact: the function is unchanged. Needs gates that sum to 1 and k a multiple of G.
      router_stddev: standard deviation of the router.
      seed: of the router.
    """

    granularity: int
    num_experts: int
    num_experts_per_token: int
    router: str = "softmax_topk"
    normalize_gates: bool = False
    exact: bool = False
    router_stddev: float = 0.02
    seed: int = 0
    optimizer: str = dataclasses.field(default="reset", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "granularity", "num_experts", "num_experts_per_token")
        check_range(self, 0.0, math.inf, "router_stddev")
        check_divides(self, "granularity", self.num_experts, "num_experts")
        if self.exact and not sums_to_one(self):
            raise UserError(
                "VirtualGroups.exact needs gates that sum to 1: set normalize_gates = True or router = 'topk_softmax'"
            )
        if self.exact and self.num_experts_per_token % self.granularity:
            raise UserError(
                f"VirtualGroups.exact needs a num_experts_per_token that is a multiple of granularity "
                f"{self.granularity}, not {self.num_experts_per_token}: a token must choose whole copies"
            )

    @property
    def factor(self) -> float:
        """a, what the experts' output is multiplied by."""
        if sums_to_one(self):
            return float(self.granularity)
        return self.num_experts * self.granularity / self.num_experts_per_token

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same with experts that are shards of the dense layer."""
        return to_sparse(architecture, self, architecture.config.mlp_dim // self.granularity)

    def make_change(self, weights: Weights) -> Change:
        """See `Surgery.make_change`."""
        architecture = self.need_architecture(weights.architecture)
        check_dense(self, architecture)
        check_divides(self, "granularity", architecture.config.mlp_dim, "mlp_dim")
        three = architecture.mlp == "gated" or architecture.activation == "relu_squared"
        root = self.factor ** (1 / 3 if three else 1 / 2)
        columns = [expert // self.granularity for expert in range(self.num_experts)]

        def factor(name: str) -> float:
            return root if not self.exact else self.factor if name == "wo" else 1.0

        def change(leaves: Leaves, slot: Slot) -> Leaves:
            experts = with_experts(leaves, lambda name, leaf: self._tile(name, leaf, slot, factor(name)))
            return experts | make_router(leaves, slot, columns, self.router_stddev, self.seed)

        return change

    def _tile(self, name: str, leaf: Leaf, slot: Slot, factor: float) -> Leaf:
        """The experts' matrices [layers, expert, ...] of one dense matrix."""
        copies = self.num_experts // self.granularity
        shards = split_neurons(leaf.array, leaf.axes.index("mlp"), self.granularity)
        tiled = lazy.take(shards, 1, list(range(self.granularity)) * copies)
        detail = f"{copies} copies of {self.granularity} shards" + (f", times {factor:.6g}" if factor != 1.0 else "")
        kind = "scaled" if factor != 1.0 else "copied"
        return Leaf(slot.scale(tiled, factor), expert_axes(name), leaf.origin.then(kind, detail))
