"""Width: more neurons, a wider residual stream, without a change of the function (more heads: `heads`).

New parts begin with outputs of zero, so that the model computes what it computed, and learn from the first step on,
because what feeds them is not zero. Tensors are known by the names of their axes, see `reads`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.leaves import Leaf, Leaves
from t5x_scale.models.architecture import Architecture
from t5x_scale.surgery.checks import check_at_least, check_range
from t5x_scale.surgery.draws import add_noise, normal_like
from t5x_scale.surgery.interface import Slot, Surgery


@dataclasses.dataclass(frozen=True)
class WidenMlp(Surgery):
    """More neurons in every feed-forward layer, in every expert where there are some. The function stays.

    Attributes:
      mlp_dim: neurons after the surgery.
      how: `zero` adds neurons whose output is zero; `split` copies neurons in turn and divides the output among the
        copies (Net2Net, Chen et al. 2016, arXiv 1511.05641). Copies that are equal have equal gradients and stay
        equal, so `split` wants `noise`; `zero` needs none.
      initialise: for `zero`, what feeds the new neurons: `copy` of the old ones in turn, or `normal` with the standard
        deviation of the layer's own matrix.
      noise: added to what feeds the copies of `split`, in standard deviations of the layer's matrix. With it the
        function only nearly stays.
      seed: of what is drawn.
    """

    mlp_dim: int
    how: str = "zero"
    initialise: str = "copy"
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("WidenMlp.how", self.how, ("zero", "split"))
        check_choice("WidenMlp.initialise", self.initialise, ("copy", "normal"))
        check_at_least(self, 1, "mlp_dim")
        check_range(self, 0.0, math.inf, "noise")

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same with wider feed-forward layers."""
        return architecture.with_config(mlp_dim=self.mlp_dim)

    def change_leaves(self, leaves: Leaves, architecture: Architecture | None, slot: Slot) -> Leaves:
        """See `Surgery.change_leaves`."""
        old = self.need_architecture(architecture).config.mlp_dim
        if self.mlp_dim <= old:
            raise UserError(f"WidenMlp.mlp_dim is {self.mlp_dim}; the model has {old} neurons already")
        return {
            path: self._widen(path, leaf, leaf.axes.index("mlp"), slot) if "mlp" in leaf.axes else leaf
            for path, leaf in leaves.items()
        }

    def _widen(self, path: str, leaf: Leaf, axis: int, slot: Slot) -> Leaf:
        number = f"{self.mlp_dim - leaf.shape[axis]} neurons"
        if self.how == "split":
            return leaf.changed(self._split(path, leaf, axis, slot), "grown", f"{number} split off")
        how = "with zero output" if reads(leaf, axis) else "drawn" if self.initialise == "normal" else "copied"
        return leaf.changed(self._append(path, leaf, axis, slot), "grown", f"{number} {how}")

    def _append(self, path: str, leaf: Leaf, axis: int, slot: Slot) -> LazyArray:
        array, old = leaf.array, leaf.shape[axis]
        turns = [index % old for index in range(old, self.mlp_dim)]
        if reads(leaf, axis):
            new = lazy.full(lazy.take(array, axis, turns).shape, array.dtype)
        elif self.initialise == "normal":
            shape = lazy.take(array, axis, turns).shape
            new = lazy.cast(normal_like(shape, array, "embed" in leaf.axes, self.seed, path), array.dtype)
        else:
            new = lazy.take(array, axis, turns)
        return lazy.concatenate([array, slot.new(new, array, axis)], axis)

    def _split(self, path: str, leaf: Leaf, axis: int, slot: Slot) -> LazyArray:
        if reads(leaf, axis):
            return _repeat(leaf.array, axis, self.mlp_dim, lambda part, count: slot.carry(part, 1 / count, 1.0))
        repeated = _repeat(leaf.array, axis, self.mlp_dim, lambda part, count: slot.carry(part, 1.0, 1 / count))
        if not slot.is_parameters or not self.noise:
            return repeated
        old = leaf.shape[axis]
        copies = lazy.take_slice(repeated, axis, old, self.mlp_dim)
        noisy = add_noise(copies, leaf.array, self.noise, 1.0, self.seed, path)
        return lazy.concatenate([leaf.array, noisy], axis)


def _repeat(array: LazyArray, axis: int, size: int, change: Callable[[LazyArray, int], LazyArray]) -> LazyArray:
    """Entries in turn until there are `size`, each changed by `change(entries, how often they are there)`."""
    old = array.shape[axis]
    turns, more = divmod(size, old)
    often = change(lazy.take_slice(array, axis, 0, more), turns + 1)
    seldom = change(lazy.take_slice(array, axis, more, old), turns)
    parts = [*[often, seldom] * turns, often]
    return lazy.concatenate([part for part in parts if part.shape[axis]], axis)


@dataclasses.dataclass(frozen=True)
class WidenEmbed(Surgery):
    """A wider residual stream, for decoders with RMSNorm. The function stays.

    With zeros appended to the stream, x' = (x, 0) of d' instead of d features, the mean square shrinks to

        mean(x'^2) = (d / d') mean(x^2)

    so a norm with the scale s' = s sqrt(d / d') and epsilon' = epsilon d / d' gives

        x s sqrt(d / d') / sqrt((d / d') mean(x^2) + (d / d') epsilon) = x s / sqrt(mean(x^2) + epsilon),

    what it gave before, and zeros behind it. The equality is exact in real numbers; d'/d that are powers of 4 are exact
    in every dtype, others round each scale once (2^-9 of it in bfloat16). What writes to the stream writes zeros to the
    new features, and what reads them is drawn, so that the writers have gradients from the first step on.

    Not for LayerNorm: it subtracts the mean, which zeros appended change, so that the new features are no longer zero
    behind it. Not with norms of queries and keys, which share the epsilon and do not become wider. Not with relative
    positions, whose sinusoids are as wide as the stream.

    Attributes:
      embed_dim: features after the surgery.
      stddev: of what is drawn.
      seed: of what is drawn.
    """

    embed_dim: int
    stddev: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "embed_dim")
        check_range(self, 0.0, math.inf, "stddev")

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same, wider and with the smaller epsilon; scales of embeddings and attention stay what they are."""
        shrunk = architecture.norm_epsilon * architecture.config.embed_dim / self.embed_dim
        return dataclasses.replace(architecture.with_config(embed_dim=self.embed_dim), norm_epsilon=shrunk)

    def change_leaves(self, leaves: Leaves, architecture: Architecture | None, slot: Slot) -> Leaves:
        """See `Surgery.change_leaves`."""
        architecture = self.need_architecture(architecture)
        self._check(architecture)
        return {
            path: leaf.changed(self._widen(path, leaf, architecture, slot), "grown", self._detail(path, leaf))
            if "embed" in leaf.axes
            else leaf
            for path, leaf in leaves.items()
        }

    def _check(self, architecture: Architecture) -> None:
        width = architecture.config.embed_dim
        if self.embed_dim <= width:
            raise UserError(f"WidenEmbed.embed_dim is {self.embed_dim}; the model has {width} already")
        if architecture.norm != "rms":
            raise UserError("WidenEmbed cannot widen a model with LayerNorm: the mean that it takes off would change")
        if architecture.qk_norm:
            raise UserError("WidenEmbed cannot widen a model with norms of queries and keys: they share the epsilon")
        if architecture.positions == "relative":
            raise UserError("WidenEmbed cannot widen a model with relative positions: their sinusoids would change")

    def _widen(self, path: str, leaf: Leaf, architecture: Architecture, slot: Slot) -> LazyArray:
        axis = leaf.axes.index("embed")
        array, shape = leaf.array, list(leaf.shape)
        shape[axis] = self.embed_dim - leaf.shape[axis]
        if path.endswith("norm/scale"):
            array = self._scale_norm(array, leaf.shape[axis], architecture.norm_offset, slot)
            new = lazy.take(array, axis, [index % leaf.shape[axis] for index in range(shape[axis])])
        elif axis == len(shape) - 1:
            new = lazy.full(shape, array.dtype)
        else:
            new = lazy.normal(shape, array.dtype, self.stddev, self.seed, path)
        return lazy.concatenate([array, slot.new(new, array, axis)], axis)

    def _scale_norm(self, array: LazyArray, width: int, offset: float, slot: Slot) -> LazyArray:
        factor = math.sqrt(width / self.embed_dim)
        if not slot.is_parameters:
            return slot.scale(array, factor)
        return lazy.elementwise(lambda scale: (scale.astype("float64") + offset) * factor - offset, array)

    def _detail(self, path: str, leaf: Leaf) -> str:
        added = f"{self.embed_dim - leaf.shape[leaf.axes.index('embed')]} features"
        if path.endswith("norm/scale"):
            return f"{added}, scaled for the wider mean"
        return added + (" of zero" if leaf.axes[-1] == "embed" else f" drawn with standard deviation {self.stddev:g}")


def reads(leaf: Leaf, axis: int) -> bool:
    """Whether a matrix reads the dimension `axis`, as `wo` does `mlp`, rather than makes it."""
    return "embed" in leaf.axes and axis < leaf.axes.index("embed")
