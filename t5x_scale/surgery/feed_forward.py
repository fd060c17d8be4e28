"""The feed-forward layers of a model on their way between one for all tokens and several experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.leaves import Leaf, Leaves, Origin
from t5x_scale.models.architecture import Architecture
from t5x_scale.surgery.interface import LAYERS, Slot, Surgery

MLP = "decoder/layers/mlp/"
EXPERTS = f"{MLP}experts/"
ROUTER = f"{MLP}router/kernel"


def check_dense(surgery: Surgery, architecture: Architecture) -> None:
    """Checks that there is one feed-forward layer a block, and that experts can be made of it.

    Raises:
      UserError: there are experts already, or biases, which experts do not have.
    """
    name, experts = type(surgery).__name__, architecture.config.num_experts
    if experts:
        raise UserError(f"{name}: the model has {experts} experts already; MergeExperts makes it dense")
    if architecture.mlp_bias:
        raise UserError(f"{name}: the feed-forward layers of this model have biases, and experts have none")


def with_experts(leaves: Leaves, make: Callable[[str, Leaf], Leaf]) -> dict[str, Leaf]:
    """The leaves with each matrix of the feed-forward layers replaced by that of all experts.

    Args:
      leaves: of a dense model, or one of its moments.
      make: from the name of a matrix (`wi_0`, `wo`) and the matrix to that of all experts.
    """
    changed = {}
    for path, leaf in leaves.items():
        if path.startswith(MLP):
            name = path.removeprefix(MLP)
            changed[EXPERTS + name] = make(name.split("/")[0], leaf)
        else:
            changed[path] = leaf
    return changed


def expert_axes(name: str) -> tuple[str, ...]:
    """The axes of the experts' matrix called `name` (`wi_0`, `wo`)."""
    return (LAYERS, "expert", "mlp", "embed") if name == "wo" else (LAYERS, "expert", "embed", "mlp")


def to_sparse(architecture: Architecture, surgery: Any, mlp_dim: int, gate_scale: float = 1.0) -> Architecture:
    """The architecture with the experts, `mlp_dim` wide, and the router that a surgery's settings ask for."""
    changed = architecture.with_config(
        mlp_dim=mlp_dim, num_experts=surgery.num_experts, num_experts_per_token=surgery.num_experts_per_token
    )
    return dataclasses.replace(
        changed, router=surgery.router, normalize_gates=surgery.normalize_gates, gate_scale=gate_scale
    )


def sums_to_one(surgery: Any) -> bool:
    """Whether the gates of the chosen experts sum to 1 under a surgery's settings."""
    return surgery.normalize_gates or surgery.router == "topk_softmax"


def make_router(leaves: Leaves, slot: Slot, columns: Sequence[int], stddev: float, seed: int) -> dict[str, Leaf]:
    """The router's kernel [layers, embed, expert] for one tree; nothing where the tree has no feed-forward layers.

    The parameters are drawn. There are no second moments of a tensor that was not there; those of the feed-forward
    layer's first matrix, averaged over its neurons, are at least of one that sees the same input.

    Args:
      leaves: of the dense model.
      slot: what the tree is.
      columns: for every expert, the number of the column that is drawn for it; experts may share one.
      stddev: of the parameters; 0 sends every token to the first experts.
      seed: of what is drawn.
    """
    first = next((leaves[path] for name in ("wi_0", "wi") if (path := f"{MLP}{name}/kernel") in leaves), None)
    if first is None:
        return {}
    drawn = lazy.normal((*first.shape[:2], max(columns) + 1), first.array.dtype, stddev, seed, ROUTER)
    array = slot.new(lazy.take(drawn, 2, columns), first.array, 2)
    detail = f"normal with standard deviation {stddev:g}, seed {seed}" if slot.is_parameters else "as a new tensor"
    return {ROUTER: Leaf(array, (LAYERS, "embed", "expert"), Origin("initialised", "", detail))}


def split_neurons(array: LazyArray, axis: int, parts: int) -> LazyArray:
    """[layers, ...] to [layers, parts, ...]: the neurons along `axis` in `parts` runs."""
    split = lazy.split_axis(array, axis, (parts, array.shape[axis] // parts))
    others = (d for d in range(split.ndim) if d not in (0, axis))
    return lazy.transpose(split, (0, axis, *others))


def join_neurons(array: LazyArray, axis: int) -> LazyArray:
    """The inverse of `split_neurons`: [layers, parts, ...] to [layers, ...] with all neurons along `axis`."""
    others = [d for d in range(array.ndim) if d != 1]
    others.insert(axis, 1)
    return lazy.merge_axes(lazy.transpose(array, others), axis, 2)
