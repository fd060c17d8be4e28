"""Depth: models with other layers than they had, each a copy of one of theirs.

Layers are stacked along the axis `layers`, so all of these are one operation: a list that says for every new layer
which old one it is. They work on any tensors with that axis, whether or not the architecture is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.core.leaves import Leaf, Leaves
from t5x_scale.models.architecture import Architecture, shortest_cycle
from t5x_scale.models.weights import Weights
from t5x_scale.surgery.checks import check_at_least, check_one_of, is_integer
from t5x_scale.surgery.interface import LAYERS, Change, Slot, Surgery

# The last linear maps of both branches, in a dense model and in one with experts.
OUTPUTS = tuple(f"decoder/layers/{name}/" for name in ("self_attention/out", "mlp/wo", "mlp/experts/wo"))
POST_NORMS = tuple(f"decoder/layers/{name}/" for name in ("post_attention_norm", "post_mlp_norm"))


@dataclasses.dataclass(frozen=True)
class LayerSurgery(Surgery):
    """A surgery that chooses layers; subclasses say which."""

    only_layers: ClassVar[bool] = True

    def choose(self, num_layers: int) -> list[int]:
        """The old layer, from 0, that each new layer is a copy of.

        Raises:
          UserError: the settings do not fit a model of `num_layers` layers.
        """
        raise NotImplementedError

    def make_change(self, weights: Weights) -> Change:
        """See `Surgery.make_change`."""
        layers = self.choose(count_layers(weights))
        return lambda leaves, slot: {path: _take_layers(leaf, layers) for path, leaf in leaves.items()}

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same in another depth; layers keep the windows they had."""
        layers = self.choose(architecture.config.num_layers)
        windows = choose_windows(architecture.windows, layers)
        return dataclasses.replace(architecture.with_config(num_layers=len(layers)), windows=windows)


@dataclasses.dataclass(frozen=True)
class SelectLayers(LayerSurgery):
    """Any list of layers, in any order, repeated or left out.

    Attributes:
      layers: numbers from 0, or slices `(start, stop)` with the stop excluded, or both: `[(0, 24), (8, 32)]`, as in
        the passthrough merges of mergekit, is what SOLAR did.
    """

    layers: Sequence[int | tuple[int, int]]

    def choose(self, num_layers: int) -> list[int]:
        """See `LayerSurgery.choose`."""
        chosen = [layer for entry in self.layers for layer in self._expand(entry, num_layers)]
        if not chosen:
            raise UserError("SelectLayers.layers is empty; a model needs at least one layer")
        return chosen

    def _expand(self, entry: int | Sequence[int], num_layers: int) -> Iterable[int]:
        if is_integer(entry):
            if not 0 <= entry < num_layers:
                raise UserError(
                    f"SelectLayers.layers: {entry} is no layer of a model of {num_layers}; "
                    f"they are numbered 0 to {num_layers - 1}"
                )
            return (entry,)
        if not isinstance(entry, Sequence) or isinstance(entry, str) or not all(map(is_integer, entry)):
            raise UserError(f"SelectLayers.layers: {entry!r} is neither a number nor a slice (start, stop)")
        if len(entry) != 2 or not 0 <= entry[0] < entry[1] <= num_layers:
            raise UserError(
                f"SelectLayers.layers: {list(entry)} is no slice (start, stop) of a model of {num_layers} layers; "
                f"the stop is excluded, all of them are (0, {num_layers})"
            )
        return range(*entry)


@dataclasses.dataclass(frozen=True)
class DepthUpscale(LayerSurgery):
    """SOLAR's depth up-scaling (Kim et al. 2023, arXiv 2312.15166): two copies that overlap.

    The first copy loses its last m layers and the second its first m: n layers become 2 (n - m). SOLAR 10.7B made
    48 layers of Mistral 7B's 32 with m = 8: layers 0 to 23, then 8 to 31. The loss rises at the seam, and falls
    below that of the base in continued training.

    Attributes:
      num_removed: m.
      num_layers: 2 (n - m) instead; one of the two is given.
    """

    num_removed: int | None = None
    num_layers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(self, "num_removed", "num_layers")

    def choose(self, num_layers: int) -> list[int]:
        """See `LayerSurgery.choose`."""
        target = 2 * (num_layers - self.num_removed) if self.num_layers is None else self.num_layers
        least, most = num_layers + 2 - num_layers % 2, 2 * num_layers
        if target % 2 or not least <= target <= most:
            said = f"num_removed={self.num_removed}" if self.num_layers is None else f"num_layers={self.num_layers}"
            raise UserError(
                f"DepthUpscale.{said} does not fit a model of {num_layers} layers: two overlapping copies have an even "
                f"number of layers from {least} to {most}, that is num_removed from 0 to {num_layers - least // 2}"
            )
        half = target // 2
        return [*range(half), *range(num_layers - half, num_layers)]


@dataclasses.dataclass(frozen=True)
class Stack(LayerSurgery):
    """The whole stack of layers several times over (G_stack, Du et al. 2024, arXiv 2405.15319).

    Attributes:
      times: the growth factor; the paper advises 2 to 4.
    """

    times: int

    def choose(self, num_layers: int) -> list[int]:
        """See `LayerSurgery.choose`."""
        check_at_least(self, 2, "times")
        return list(range(num_layers)) * self.times


@dataclasses.dataclass(frozen=True)
class Interleave(LayerSurgery):
    """Each layer several times in place: 0, 0, 1, 1, ...

    Attributes:
      times: how often each layer stands in the result.
    """

    times: int

    def choose(self, num_layers: int) -> list[int]:
        """See `LayerSurgery.choose`."""
        check_at_least(self, 2, "times")
        return [layer for layer in range(num_layers) for _ in range(self.times)]


@dataclasses.dataclass(frozen=True)
class ExpandBlocks(LayerSurgery):
    """LLaMA-Pro's block expansion (Wu et al. 2024, arXiv 2401.02415): new layers that do nothing yet.

    After every P-th layer stands a copy of it whose two branches give zero, so the function is unchanged, in every
    bit. LLaMA-Pro made 40 layers of Llama 2 7B's 32, copies after layers 3, 7, ..., 31, and trained nothing else;
    `optim.frozen_layers.FrozenLayers` does that, with the layers that `new_layers` gives.

    What makes a branch zero are its output projections (kernel and bias), which then receive gradients from the
    first step on. Where a norm stands behind them (`sandwich`), it would bring whatever they become after one step
    to full size at once; there the gain of that norm is zero instead, and the projections are copied.

    Of a state that is mapped, new layers have the second moments of the layers they are copies of, and first
    moments of zero. The default is to start afresh, because the state of an optimiser that trains nothing but new
    layers has another shape.

    Attributes:
      num_new: how many layers are added; it must divide the number of layers.
      every: P instead; one of the two is given.
    """

    num_new: int | None = None
    every: int | None = None
    optimizer: str = dataclasses.field(default="reset", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(self, "num_new", "every")
        check_at_least(self, 1, "every" if self.num_new is None else "num_new")

    def choose(self, num_layers: int) -> list[int]:
        """See `LayerSurgery.choose`."""
        every = self._every(num_layers)
        return [layer for old in range(num_layers) for layer in ((old, old) if (old + 1) % every == 0 else (old,))]

    def new_layers(self, num_layers: int) -> tuple[int, ...]:
        """The numbers that the new layers of a model of `num_layers` layers have in the result."""
        every = self._every(num_layers)
        return tuple(range(every, num_layers + num_layers // every, every + 1))

    def make_change(self, weights: Weights) -> Change:
        """See `Surgery.make_change`."""
        num_layers = count_layers(weights)
        layers, new = self.choose(num_layers), self.new_layers(num_layers)
        zeroed = self._zeroed(weights)

        def change(leaves: Leaves, slot: Slot) -> Leaves:
            values = zeroed if slot.is_parameters else {} if slot.is_second_moment else dict.fromkeys(leaves, 0.0)
            return {
                path: _take_layers(leaf, layers, new, values[path]) if path in values else _take_layers(leaf, layers)
                for path, leaf in leaves.items()
            }

        return change

    def _zeroed(self, weights: Weights) -> dict[str, float]:
        """`{path: value}` of the parameters that make the branches of a new layer zero."""
        norms = [path for path in weights.leaves if path.startswith(POST_NORMS)]
        if not norms:
            return {path: 0.0 for path in weights.leaves if path.startswith(OUTPUTS)}
        offset = self.need_architecture(weights.architecture).norm_offset
        return {path: 0.0 - offset if path.endswith("/scale") else 0.0 for path in norms}

    def _every(self, num_layers: int) -> int:
        every = self.every if self.num_new is None else num_layers // self.num_new
        if self.num_new is not None and num_layers % self.num_new:
            divisors = ", ".join(str(n) for n in range(1, num_layers + 1) if num_layers % n == 0)
            raise UserError(
                f"ExpandBlocks.num_new is {self.num_new}, which does not divide {num_layers} layers; {divisors} do"
            )
        if every > num_layers:
            raise UserError(f"ExpandBlocks.every is {every}, more than the model's {num_layers} layers")
        return every


_LAYER_SURGERIES = {kind.__name__ for kind in (SelectLayers, DepthUpscale, Stack, Interleave, ExpandBlocks)}


def find_new_layers(recipe: Sequence[Mapping[str, Any]], num_layers: int) -> tuple[int, ...]:
    """Numbers of the layers that block expansion gave to a model.

    Args:
      recipe: of the model, see `Weights`.
      num_layers: of the model as it is now.

    Returns:
      Numbers from 0; none where its layers were last chosen by another surgery, or never.
    """
    steps = [step for step in recipe if step.get("surgery") in _LAYER_SURGERIES]
    if not steps or steps[-1]["surgery"] != ExpandBlocks.__name__:
        return ()
    num_new, every = steps[-1].get("num_new"), steps[-1].get("every")
    every = every or (num_layers - num_new) // num_new
    return tuple(range(every, num_layers, every + 1))


def count_layers(weights: Weights) -> int:
    """The number of layers that are stacked in the weights.

    Raises:
      UserError: nothing is stacked, or tensors disagree with each other or with the architecture.
    """
    counts = {path: leaf.shape[0] for path, leaf in weights.leaves.items() if leaf.axes[:1] == (LAYERS,)}
    if not counts:
        raise UserError("this checkpoint has no tensor with the axis 'layers' in front, so no layers to choose from")
    first = next(iter(counts))
    expected = weights.architecture.config.num_layers if weights.architecture else counts[first]
    for path, count in counts.items():
        if count != expected:
            said = "the architecture" if weights.architecture else first
            raise UserError(f"{path} has {count} layers, {said} has {expected}")
    return expected


def choose_windows(windows: Sequence[int | None], layers: Sequence[int]) -> tuple[int | None, ...]:
    """The shortest cycle of windows that gives every new layer the window of the old one it copies."""
    full = [windows[layer % len(windows)] for layer in layers] if windows else []
    return shortest_cycle(full, len(full))


def render_layers(layers: Sequence[int]) -> str:
    """`0-23, 8-31` of a list of layers."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _take_layers(leaf: Leaf, layers: Sequence[int], new: Sequence[int] = (), value: float = 0.0) -> Leaf:
    """The leaf in other layers; those at `new` are filled with `value`. A leaf without layers stays as it is."""
    if LAYERS not in leaf.axes:
        return leaf
    axis = leaf.axes.index(LAYERS)
    array, indices, detail = leaf.array, list(layers), f"layers {render_layers(layers)}"
    if new:
        filled = lazy.full((*array.shape[:axis], 1, *array.shape[axis + 1 :]), array.dtype, value)
        array = lazy.concatenate([array, filled], axis)
        for layer in new:
            indices[layer] = array.shape[axis] - 1
        detail += f"; {value:g} in the new layers {render_layers(new)}"
    return leaf.changed(lazy.take(array, axis, indices), "grown" if new else "copied", detail)
