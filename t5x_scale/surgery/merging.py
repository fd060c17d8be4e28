"""Merging: one model out of several of the same shapes, tensor by tensor.

A merge is a frozen dataclass like a surgery, but takes a list:

    Ties(density=0.2)([base, math, code], names=["base", "math", "code"])

Where `has_base` is true, the first of the list is the model that all others were trained from; elsewhere all are
equals. The result has the architecture, the tokenizer and the dtypes of the first. Arithmetic is done in float32 or
better, one block of one tensor at a time, and nothing is read before the result is. No optimiser's state survives:
moments of other parameters say nothing of the merged ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from t5x_scale.core.describe import describe
from t5x_scale.core.errors import UserError
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.leaves import Leaf, Origin
from t5x_scale.models.weights import Weights
from t5x_scale.surgery import merge_views as views
from t5x_scale.surgery.alike import check_alike
from t5x_scale.surgery.checks import check_range

# Dimensions that count matrices rather than being a side of one.
STACKS = ("layers", "expert")


@dataclasses.dataclass(frozen=True)
class Tensors:
    """One tensor of every model of a merge, in their order.

    Attributes:
      path: of the parameter.
      arrays: its values, all of one shape.
      stacked: number of leading dimensions that count layers or experts.
    """

    path: str
    arrays: Sequence[LazyArray]
    stacked: int


@dataclasses.dataclass(frozen=True)
class Merge:
    """One model out of several. Subclasses say how the tensors of one path become one (`merge`)."""

    has_base: ClassVar[bool] = False

    def merge(self, tensors: Tensors) -> LazyArray:
        """One tensor of the result, in the dtype of the first."""
        raise NotImplementedError

    def check_count(self, count: int) -> None:
        """Checks that the settings fit that many models.

        Raises:
          UserError: they do not.
        """
        if count < 2:
            raise UserError(f"{type(self).__name__} merges two models or more, not {count}")

    def __call__(self, models: Sequence[Weights], names: Sequence[str] = ()) -> Weights:
        """The merged model.

        Args:
          models: alike in architecture, shapes and vocabulary; the base first where there is one.
          names: what reports call them; "base" (or "model 0") and "model 1", ... by default.

        Raises:
          UserError: the models differ in more than values, or the settings do not fit their number.
        """
        self.check_count(len(models))
        names = tuple(names) or self._default_names(len(models))
        for model, name in zip(models[1:], names[1:], strict=True):
            check_alike(models[0], model, names[0], name)
        leaves = {path: self._merge_leaf(path, models, names) for path in models[0].leaves}
        record = {name: value for name, value in describe(self).items() if name != "class"}
        sources = {name: list(model.recipe) for name, model in zip(names, models, strict=True)}
        recipe = ({"merge": type(self).__name__, **record, "models": sources},)
        return models[0].replace(leaves=leaves, moments={}, counters={}, dropped={}, recipe=recipe)

    def _merge_leaf(self, path: str, models: Sequence[Weights], names: Sequence[str]) -> Leaf:
        leaves = [model.leaves[path] for model in models]
        first = leaves[0]
        stacked = next((i for i, axis in enumerate(first.axes) if axis not in STACKS), len(first.axes))
        array = self.merge(Tensors(path, [leaf.array for leaf in leaves], stacked))
        kinds = {leaf.origin.kind for leaf in leaves} - {"restored", "renamed"}
        detail = type(self).__name__ + (f" of tensors that were {' and '.join(sorted(kinds))}" if kinds else "")
        return Leaf(array, first.axes, Origin("merged", _name_sources(leaves, names), detail))

    def _default_names(self, count: int) -> tuple[str, ...]:
        first = "base" if self.has_base else "model 0"
        return (first, *(f"model {index}" for index in range(1, count)))


@dataclasses.dataclass(frozen=True)
class Linear(Merge):
    """The weighted mean of models (Wortsman et al. 2022, arXiv 2203.05482, with equal weights a "uniform soup").

    Attributes:
      weights: one a model.
      normalize: whether they are divided by their sum.
    """

    weights: Sequence[float]
    normalize: bool = True

    def check_count(self, count: int) -> None:
        """See `Merge.check_count`."""
        super().check_count(count)
        _check_one_each("Linear.weights", self.weights, count)
        if self.normalize and not sum(self.weights):
            raise UserError("Linear.weights sum to 0 and cannot be normalised; set normalize=False if that is meant")

    def merge(self, tensors: Tensors) -> LazyArray:
        """See `Merge.merge`."""
        total = sum(self.weights) if self.normalize else 1.0
        return _sum(tensors.arrays, [weight / total for weight in self.weights])


@dataclasses.dataclass(frozen=True)
class Average(Merge):
    """The mean of models, such as the last k checkpoints of a run."""

    def merge(self, tensors: Tensors) -> LazyArray:
        """See `Merge.merge`."""
        return _sum(tensors.arrays, [1.0 / len(tensors.arrays)] * len(tensors.arrays))


@dataclasses.dataclass(frozen=True)
class Ema(Merge):
    """The exponential moving average of checkpoints, oldest first: `average <- decay average + (1 - decay) next`.

    Attributes:
      decay: share of the average that stays at each checkpoint; it begins as the oldest.
    """

    decay: float

    def __post_init__(self) -> None:
        check_range(self, 0.0, 1.0, "decay")

    def merge(self, tensors: Tensors) -> LazyArray:
        """See `Merge.merge`."""
        last = len(tensors.arrays) - 1
        newer = [(1.0 - self.decay) * self.decay ** (last - index) for index in range(1, last + 1)]
        return _sum(tensors.arrays, [self.decay**last, *newer])


@dataclasses.dataclass(frozen=True)
class Slerp(Merge):
    """Spherical interpolation between two models (Shoemake 1985), for each matrix of each layer.

    The angle is that between the matrices as vectors, and the shares of the arc are applied to the matrices as they
    are, so that norms are interpolated with them.

    Attributes:
      t: 0 is the first model, 1 the second.
      nearly: matrices whose cosine is larger than this in size are interpolated linearly.
    """

    t: float
    nearly: float = 0.9995

    def __post_init__(self) -> None:
        check_range(self, 0.0, 1.0, "t")
        check_range(self, 0.0, 1.0 - 1e-9, "nearly")

    def check_count(self, count: int) -> None:
        """See `Merge.check_count`."""
        if count != 2:
            raise UserError(f"Slerp goes from one model to another, it cannot merge {count}; Linear can")

    def merge(self, tensors: Tensors) -> LazyArray:
        """See `Merge.merge`."""
        return views.slerp(*tensors.arrays, self.t, tensors.stacked, self.nearly)


@dataclasses.dataclass(frozen=True)
class BasedMerge(Merge):
    """Merges of what several models learned since the base, which is the first of the list.

    Attributes:
      scales: how much of each model's difference from the base is taken: one number for all, or one a model.
    """

    has_base: ClassVar[bool] = True

    scales: float | Sequence[float] = 1.0

    def check_count(self, count: int) -> None:
        """See `Merge.check_count`."""
        super().check_count(count)
        if isinstance(self.scales, Sequence):
            _check_one_each(f"{type(self).__name__}.scales", self.scales, count - 1, " and none for the base")

    def scales_for(self, arrays: Sequence[LazyArray]) -> list[float]:
        """The scale of each model but the base."""
        return list(self.scales) if isinstance(self.scales, Sequence) else [self.scales] * (len(arrays) - 1)


@dataclasses.dataclass(frozen=True)
class TaskArithmetic(BasedMerge):
    """`base + sum_i scale_i (model_i - base)` (Ilharco et al. 2022, arXiv 2212.04089); a negative scale unlearns."""

    def merge(self, tensors: Tensors) -> LazyArray:
        """See `Merge.merge`."""
        scales = self.scales_for(tensors.arrays)
        return _sum(tensors.arrays, [1.0 - sum(scales), *scales])


@dataclasses.dataclass(frozen=True)
class Ties(BasedMerge):
    """TIES (Yadav et al. 2023, arXiv 2306.01708): trim the differences, elect a sign each, average those that agree.

    The paper trims all parameters of a model together; here the share is taken of each matrix of each layer, as merging
    tools do, so that no tensor is lost to the larger changes of others.

    Attributes:
      scales: the weights of the models in the election and in the mean, not negative.
      density: share of each matrix that is kept, the largest changes (the paper's k, 0.2).
      scale: multiplies the merged difference (the paper's lambda).
    """

    density: float = 0.2
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, 1e-9, 1.0, "density")
        _check_not_negative("Ties.scales", self.scales)

    def merge(self, tensors: Tensors) -> LazyArray:
        """See `Merge.merge`."""
        base, *models = tensors.arrays
        deltas = [views.trim(views.difference(model, base), self.density, tensors.stacked) for model in models]
        merged = views.consensus(deltas, self.scales_for(tensors.arrays))
        return _sum([base, merged], [1.0, self.scale])


@dataclasses.dataclass(frozen=True)
class Dare(BasedMerge):
    """DARE (Yu et al. 2023, arXiv 2311.03099): drop most of each difference at random, and rescale what is left.

    Attributes:
      scales: see `BasedMerge`; with `elect_signs` they are the weights of the election, not negative.
      drop_rate: probability with which an element's change is dropped.
      seed: which are dropped is a function of it, the model's place in the list, the path and the index.
      elect_signs: whether what is left is merged as in `Ties` instead of summed.
    """

    drop_rate: float = 0.9
    seed: int = 0
    elect_signs: bool = False

    def __post_init__(self) -> None:
        check_range(self, 0.0, 1.0 - 1e-6, "drop_rate")
        if self.elect_signs:
            _check_not_negative("Dare.scales", self.scales)

    def merge(self, tensors: Tensors) -> LazyArray:
        """See `Merge.merge`."""
        base, *models = tensors.arrays
        deltas = [
            views.drop(views.difference(model, base), self.drop_rate, self.seed, f"{index}/{tensors.path}")
            for index, model in enumerate(models, start=1)
        ]
        scales = self.scales_for(tensors.arrays)
        if self.elect_signs:
            return _sum([base, views.consensus(deltas, scales)], [1.0, 1.0])
        return _sum([base, *deltas], [1.0, *scales])


def _name_sources(leaves: Sequence[Leaf], names: Sequence[str]) -> str:
    """`tensor of a, b, c` where it has one name in all, else `tensor of a, other of b`."""
    sources = [leaf.origin.source for leaf in leaves]
    if len(set(sources)) == 1:
        return f"{sources[0]} of {', '.join(names)}".removeprefix(" of ")
    return ", ".join(f"{source} of {name}" for source, name in zip(sources, names, strict=True))


def _sum(arrays: Sequence[LazyArray], weights: Sequence[float]) -> LazyArray:
    return views.weighted_sum(arrays, weights, arrays[0].dtype)


def _check_one_each(name: str, values: Sequence[float], count: int, more: str = "") -> None:
    if len(values) != count:
        raise UserError(f"{name} has {len(values)} numbers; there must be {count}, one a model{more}")


def _check_not_negative(name: str, values: float | Sequence[float]) -> None:
    if any(value < 0 for value in (values if isinstance(values, Sequence) else [values])):
        raise UserError(f"{name} are {values!r}; in an election of signs no weight can be negative")
