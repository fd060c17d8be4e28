"""What a surgery is: settings that make other weights out of weights, and the optimiser's state with them.

A surgery is a frozen dataclass, so that a gin file can list several:

    transforms = [@depth.DepthUpscale(), @vocabulary.ExtendVocabulary()]

and a call in Python is `DepthUpscale(num_removed=8)(weights)`. Nothing is read: the result is made of views.

A subclass says what becomes of the architecture (`change_architecture`) and of one tree of tensors
(`change_leaves`). The parameters are such a tree, and so is each moment of an optimiser: the same cut goes through
all of them, and a `Slot` tells which of them is at hand, because new elements and scaled ones differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from t5x_scale.core import lazy
from t5x_scale.core.describe import describe
from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.leaves import Leaf, Leaves, Origin
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.weights import Weights

OPTIMIZER = ("map", "reset", "keep")
LAYERS = "layers"

# The fields of the states of `t5x_scale.optim`, by what they are averages of.
_GRADIENT, _SQUARE, _UPDATE = "gradient", "square", "update"
_AVERAGES = {"mu": _GRADIENT, "nu": _SQUARE, "v": _SQUARE, "v_row": _SQUARE, "v_col": _SQUARE, "ema": _UPDATE}


@dataclasses.dataclass(frozen=True)
class Slot:
    """Which tree a surgery is at: the parameters, or one moment of an optimiser.

    Attributes:
      path: of the moment in the state, such as `opt_state/0/mu`; empty for the parameters.
    """

    path: str = ""

    @property
    def is_parameters(self) -> bool:
        """Whether these are the parameters themselves."""
        return not self.path

    @property
    def is_second_moment(self) -> bool:
        """Whether these are averages of squared gradients."""
        return self._average == _SQUARE

    @property
    def is_known(self) -> bool:
        """Whether it is known what these are averages of; if not, they cannot be mapped."""
        return self.is_parameters or self._average is not None

    def scale(self, array: LazyArray, factor: float) -> LazyArray:
        """What becomes of an entry where the parameter is multiplied by `factor` and the function stays.

        The gradient is then divided by the factor, so an average of gradients (Adam's, Lion's and Muon's `mu`) is
        too, and one of squares (`nu`, `v`) is by the factor's square. Adafactor's `ema` is an average of updates
        g / sqrt(v) * RMS(p), in which the first part stays and the last follows the parameter: it is multiplied.

        A factor of 0 is the start of a new part of the network: first moments are zero, and second moments stay,
        because the gradient of a matrix does not depend on the matrix.
        """
        if factor == 0.0 and not self.is_parameters:
            return array if self.is_second_moment else lazy.scale(array, 0.0)
        return self.carry(array, factor, 1.0 / (factor or 1.0))

    def carry(self, array: LazyArray, parameter: float, gradient: float, square: float | None = None) -> LazyArray:
        """What becomes of an entry where the parameter is multiplied by one factor and its gradient by another.

        Args:
          parameter: of the parameter, and so of averages of updates.
          gradient: of the gradient: 1/c each where c copies share the work of one.
          square: of its mean square; `gradient ** 2` by default.
        """
        if self.is_parameters or self._average == _UPDATE:
            return lazy.scale(array, parameter)
        square = gradient**2 if square is None else square
        return lazy.scale(array, square if self.is_second_moment else gradient)

    def new(self, drawn: LazyArray, others: LazyArray, axis: int) -> LazyArray:
        """Elements that a tensor did not have before.

        A first moment begins at zero. A second one must not: its average would need as many steps as its window
        is long to rise, while the correction for that is long over, so the first steps of Adam would be several
        times too large. It begins with the mean of the others.

        Args:
          drawn: their values as parameters; the result has its shape and dtype.
          others: the entries of this slot that there were, of the same shape but along `axis`.
          axis: the dimension along which `others` are averaged and the mean is repeated.
        """
        if self.is_parameters:
            return drawn
        if not self.is_second_moment:
            return lazy.full(drawn.shape, others.dtype)
        return lazy.take(lazy.mean(others, axis), axis, [0] * drawn.shape[axis])

    @property
    def _average(self) -> str | None:
        return _AVERAGES.get(self.path.rsplit("/", 1)[-1])


PARAMETERS = Slot()
Change = Callable[[Leaves, Slot], Leaves]


@dataclasses.dataclass(frozen=True)
class Surgery:
    """A change of a model: `surgery(weights)` are the weights after it.

    Attributes:
      optimizer: what becomes of the optimiser's state, if there is one: `map` changes the moments as the parameters
        are changed, `reset` leaves them out, so that the optimiser and the schedule start afresh, and `keep` leaves
        them as they are, which only changes without new shapes allow. Each surgery's default says what is sound. A
        state that cannot be mapped (an unknown optimiser; Adafactor's row and column means, but for surgeries that
        only choose layers) is reset, and the recipe says so.
    """

    optimizer: str = dataclasses.field(default="map", kw_only=True)

    # Whether the surgery does nothing but choose and scale layers, which moments of reduced shapes can follow.
    only_layers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choice(f"{type(self).__name__}.optimizer", self.optimizer, OPTIMIZER)

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The architecture after the surgery; called only where it is known."""
        return architecture

    def change_leaves(self, leaves: Leaves, architecture: Architecture | None, slot: Slot) -> Leaves:
        """One tree of tensors after the surgery.

        Args:
          leaves: by parameter path. Those of a moment may lack some: a frozen parameter has none.
          architecture: as it was before the surgery, None where it is not known.
          slot: what the tree is.
        """
        raise NotImplementedError

    def change_tokenizer(self, tokenizer: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """The files of the tokenizer after the surgery."""
        return tokenizer

    def bind(self, weights: Weights) -> Surgery:
        """The surgery that does it: itself, but where what is to be done depends on more than one tree of tensors.

        Raises:
          UserError: the surgery does not fit these weights.
        """
        return self

    def facts(self) -> dict[str, Any]:
        """What the recipe says beyond the settings: JSON values by name."""
        return {}

    def make_change(self, weights: Weights) -> Change:
        """`change_leaves` for these weights. To be overridden where all trees share something found only once.

        Raises:
          UserError: the surgery does not fit these weights.
        """
        return lambda leaves, slot: self.change_leaves(leaves, weights.architecture, slot)

    def __call__(self, weights: Weights) -> Weights:
        """The weights after the surgery, with one more step in their recipe.

        Raises:
          UserError: the surgery does not fit these weights.
        """
        bound = self.bind(weights)
        change = bound.make_change(weights)
        leaves = dict(change(weights.leaves, PARAMETERS))
        result = weights.replace(
            leaves=leaves,
            architecture=weights.architecture and bound.change_architecture(weights.architecture),
            tokenizer=bound.change_tokenizer(weights.tokenizer),
            dropped={**weights.dropped, **_dropped(weights.leaves, leaves, type(self).__name__)},
        )
        result, fate = self._change_optimizer(weights, result, change)
        settings = {name: value for name, value in describe(self).items() if name != "class"}
        step = {"surgery": type(self).__name__, **settings, **bound.facts(), **fate}
        return result.replace(recipe=(*weights.recipe, step))

    def need_architecture(self, architecture: Architecture | None) -> Architecture:
        """The architecture, for surgeries that cannot do without.

        Raises:
          UserError: it is not known.
        """
        if architecture is None:
            raise UserError(
                f"{type(self).__name__} must know the model's architecture, and this checkpoint's is not known; "
                "surgeries that only choose layers (SelectLayers, DepthUpscale, Stack, Interleave) work without"
            )
        return architecture

    def _change_optimizer(self, before: Weights, after: Weights, change: Change) -> tuple[Weights, dict[str, Any]]:
        """The weights with the optimiser's state dealt with, and what the recipe says of that."""
        if not before.moments and not before.counters:
            return after, {"optimizer": "none"}
        if self.optimizer == "keep":
            self._check_shapes_stay(before.leaves, after.leaves)
            return after, {"optimizer": "keep"}
        if self.optimizer == "reset":
            return _reset(after, "the optimiser starts afresh"), {"optimizer": "reset"}
        if reason := self._why_not_mapped(before):
            return _reset(after, reason), {"optimizer": "reset", "optimizer_reason": reason}
        moments = {path: dict(change(leaves, Slot(path))) for path, leaves in before.moments.items()}
        _check_moments(before, after, moments)
        return after.replace(moments=moments), {"optimizer": "map"}

    def _why_not_mapped(self, weights: Weights) -> str:
        for path, leaves in weights.moments.items():
            if not Slot(path).is_known:
                return f"it is not known what {path} is an average of"
            for name, leaf in leaves.items():
                if not self._can_follow(leaf, weights.leaves[name]):
                    return f"{path} has a tensor of {list(leaf.shape)} for {name}, which this surgery cannot change"
        return ""

    def _can_follow(self, entry: Leaf, parameter: Leaf) -> bool:
        """Whether an entry of a moment has what the surgery changes of its parameter."""
        stacked = LAYERS in entry.axes or LAYERS not in parameter.axes
        return entry.shape == parameter.shape or (self.only_layers and stacked)

    def _check_shapes_stay(self, before: Leaves, after: Leaves) -> None:
        for path in (*before, *after):
            if path not in before or path not in after or before[path].shape != after[path].shape:
                raise UserError(
                    f"{type(self).__name__}.optimizer is 'keep', but the surgery changes the shape of {path}; "
                    "the state of the optimiser can be 'map' or 'reset'"
                )


def _dropped(before: Leaves, after: Leaves, surgery: str) -> dict[str, Origin]:
    """Origins of tensors that are gone: neither their path nor their source is left."""
    sources = {leaf.origin.source for leaf in after.values()} - {""}
    gone = (path for path in before if path not in after and before[path].origin.source not in sources)
    return {path: Origin("dropped", before[path].origin.source, f"by {surgery}") for path in gone}


def _reset(weights: Weights, reason: str) -> Weights:
    """The weights without the state of the optimiser."""
    gone = {
        slot: Origin("dropped", slot, f"{_count(leaves)}; {reason}") for slot, leaves in weights.moments.items()
    } | {path: Origin("dropped", leaf.origin.source, reason) for path, leaf in weights.counters.items()}
    return weights.replace(moments={}, counters={}, dropped={**weights.dropped, **gone})


def _count(leaves: Leaves) -> str:
    return f"{len(leaves)} tensor{'s' * (len(leaves) != 1)}"


def _check_moments(before: Weights, after: Weights, moments: Mapping[str, Leaves]) -> None:
    """Checks that a surgery treated the moments as it treated the parameters."""
    for slot, leaves in moments.items():
        full = all(leaf.shape == before.leaves[path].shape for path, leaf in before.moments[slot].items())
        for path, leaf in leaves.items():
            if path not in after.leaves or (full and leaf.shape != after.leaves[path].shape):
                raise ValueError(f"the entry {path} {list(leaf.shape)} of {slot} does not fit the parameters")
