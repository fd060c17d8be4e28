"""Experts that share the neurons of a dense layer among them, and the way back."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.core.lazy import LazyArray, Region
from t5x_scale.core.leaves import Leaf, Leaves
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.weights import Weights
from t5x_scale.surgery.checks import check_at_least, check_divides, check_range
from t5x_scale.surgery.clustering import balanced_clusters
from t5x_scale.surgery.feed_forward import (
    EXPERTS,
    MLP,
    ROUTER,
    check_dense,
    expert_axes,
    join_neurons,
    make_router,
    split_neurons,
    sums_to_one,
    to_sparse,
    with_experts,
)
from t5x_scale.surgery.interface import Change, Slot, Surgery

METHODS = ("random", "clustered")
RESCALES = ("outputs", "gates", "none")

Order = Callable[[int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class PartitionExperts(Surgery):
    """LLaMA-MoE (Zhu et al. 2024, arXiv 2406.16554): the neurons of the dense layer in equal sets, each an expert.

    A token then passes through a part of the dense layer, so the model is smaller in use than before and must be
    trained on. Nothing of a matrix is lost or repeated. `MergeExperts` goes back.

    Reading a block of an expert's matrix reads that matrix of the whole dense layer, because its neurons lie all over
    it: memory for one matrix of one layer. `clustered` in addition reads the first matrix of each layer once, in
    float32.

    Attributes:
      num_experts: sets.
      num_experts_per_token: of them that a token passes through.
      method: `random` sets, which served the paper best, or `clustered`: balanced k-means over what the neurons
        respond to, the columns of the gate's matrix (of the only one, in layers of two).
      rescale: makes up, in `Architecture.gate_scale`, for the experts that are not chosen. `outputs`: each chosen
        expert's output is multiplied by num_experts / num_experts_per_token if their gates are equal, so that with all
        chosen, and a router that makes no difference, the dense layer is what comes out. `gates`: the gates, which
        sum to 1, are multiplied by that, as LLaMA-MoE's configurations do (8.0 for 2 of 16). `none`: by 1.
      router, normalize_gates: see `Architecture`.
      router_stddev: standard deviation of the router.
      seed: of the router and the sets.
    """

    num_experts: int
    num_experts_per_token: int
    method: str = "random"
    rescale: str = "outputs"
    router: str = "topk_softmax"
    normalize_gates: bool = True
    router_stddev: float = 0.02
    seed: int = 0
    optimizer: str = dataclasses.field(default="reset", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "num_experts", "num_experts_per_token")
        check_range(self, 0.0, math.inf, "router_stddev")
        check_choice("PartitionExperts.method", self.method, METHODS)
        check_choice("PartitionExperts.rescale", self.rescale, RESCALES)

    @property
    def gate_scale(self) -> float:
        """What the gates are multiplied by."""
        ratio = self.num_experts / self.num_experts_per_token
        if self.rescale != "outputs":
            return ratio if self.rescale == "gates" else 1.0
        # A gate is 1 / chosen where they sum to 1, and 1 / all where only all of them do.
        return ratio * (self.num_experts_per_token if sums_to_one(self) else self.num_experts)

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same with experts that share the dense layer's width."""
        return to_sparse(architecture, self, architecture.config.mlp_dim // self.num_experts, self.gate_scale)

    def make_change(self, weights: Weights) -> Change:
        """See `Surgery.make_change`."""
        architecture = self.need_architecture(weights.architecture)
        check_dense(self, architecture)
        check_divides(self, "num_experts", architecture.config.mlp_dim, "mlp_dim")
        order = self._make_order(weights, architecture.config.mlp_dim)

        def split(name: str, leaf: Leaf) -> Leaf:
            axis = leaf.axes.index("mlp")
            array = split_neurons(take_in_order(leaf.array, axis, order), axis, self.num_experts)
            return Leaf(array, expert_axes(name), leaf.origin.then("copied", f"{self.num_experts} {self.method} sets"))

        def change(leaves: Leaves, slot: Slot) -> Leaves:
            router = make_router(leaves, slot, range(self.num_experts), self.router_stddev, self.seed)
            return with_experts(leaves, split) | router

        return change

    def _make_order(self, weights: Weights, neurons: int) -> Order:
        """The neurons of a layer, those of the first expert first; found when first asked for."""
        gate = next(weights.leaves[p] for name in ("wi_0", "wi") if (p := f"{MLP}{name}/kernel") in weights.leaves)

        @functools.cache
        def order(layer: int) -> np.ndarray:
            if self.method == "random":
                return np.random.default_rng([self.seed, layer]).permutation(neurons)
            columns = lazy.select(gate.array, 0, layer).read().astype(np.float32).T
            # A stable sort leaves the neurons of an expert in the order they had.
            return np.argsort(balanced_clusters(columns, self.num_experts, self.seed), kind="stable")

        return order


@dataclasses.dataclass(frozen=True)
class MergeExperts(Surgery):
    """All experts side by side in one dense layer, through all of which every token passes; the router is dropped.

    The inverse of `PartitionExperts`, but for the order of the neurons, in which nothing is said. Of other experts it
    is their sum, which `scale` may make a mean.

    Attributes:
      scale: multiplies the output matrices.
    """

    scale: float = 1.0
    optimizer: str = dataclasses.field(default="map", kw_only=True)

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same with one layer as wide as all experts."""
        c = architecture.config
        dense = architecture.with_config(mlp_dim=c.mlp_dim * c.num_experts, num_experts=0, num_experts_per_token=0)
        return dataclasses.replace(dense, router="softmax_topk", normalize_gates=True, gate_scale=1.0)

    def make_change(self, weights: Weights) -> Change:
        """See `Surgery.make_change`."""
        architecture = self.need_architecture(weights.architecture)
        if not architecture.config.num_experts:
            raise UserError("MergeExperts: this model has no experts")
        return self._merge_all

    def _merge_all(self, leaves: Leaves, slot: Slot) -> Leaves:
        merged = {}
        for path, leaf in leaves.items():
            if path.startswith(EXPERTS):
                merged[MLP + path.removeprefix(EXPERTS)] = self._merge(leaf, slot)
            elif path != ROUTER:
                merged[path] = leaf
        return merged

    def _merge(self, leaf: Leaf, slot: Slot) -> Leaf:
        axes = tuple(axis for axis in leaf.axes if axis != "expert")
        array = join_neurons(leaf.array, axes.index("mlp"))
        scaled = axes[-1] == "embed" and self.scale != 1.0
        detail = "all experts side by side" + (f", times {self.scale:g}" if scaled else "")
        array = slot.scale(array, self.scale) if scaled else array
        return Leaf(array, axes, leaf.origin.then("scaled" if scaled else "copied", detail))


def take_in_order(array: LazyArray, axis: int, order: Order) -> LazyArray:
    """Each layer of [layers, ...] with its own order along `axis`. Blocks are cut from whole layers of the source.

    Args:
      array: dimension 0 is layers.
      axis: dimension to order.
      order: from a layer to the old place of each new one.
    """

    def read(region: Region) -> np.ndarray:
        whole = (*region[1:axis], slice(0, array.shape[axis]), *region[axis + 1 :])
        parts = [
            np.take(array.read((slice(layer, layer + 1), *whole)), order(layer)[region[axis]], axis)
            for layer in range(region[0].start, region[0].stop)
        ]
        return np.concatenate(parts) if parts else array.read(region)

    return LazyArray(array.shape, array.dtype, read, array.outer)
