"""Some layers of a stack frozen, for training that must not change the others (LLaMA-Pro, arXiv 2401.02415)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import map_with_path
from t5x_scale.optim.interface import (
    LAYERS,
    NO_OPTIONS,
    Axes,
    AxesTree,
    Optimizer,
    Options,
    Params,
    Schedule,
    frozen_paths,
)


@dataclasses.dataclass(frozen=True)
class FrozenLayers:
    """Any optimiser, for some of the layers of every stack.

    The other layers stay bit for bit as they are, weight decay included, and have no state: where 8 of 40 layers
    train, the optimiser holds a fifth of the moments. Parameters outside the stack train; `groups.Groups` around or
    inside this freezes them.

    Attributes:
      optimizer: the optimiser to wrap.
      trained: numbers, from 0, of the layers that train.
      train_every: instead of them: the last of every so many layers trains. Where block expansion put a new layer
        behind every four, it is 5.
    """

    optimizer: Optimizer
    trained: Sequence[int] | None = None
    train_every: int | None = None

    def __post_init__(self) -> None:
        if (self.trained is None) == (self.train_every is None):
            raise UserError("FrozenLayers needs one of trained and train_every, and not both")
        if self.train_every is not None and not _is_integer_from(1, self.train_every):
            raise UserError(f"FrozenLayers.train_every is {self.train_every!r}; expected a whole number of 1 or more")
        if self.trained is not None and not all(_is_integer_from(0, layer) for layer in self.trained):
            raise UserError(f"FrozenLayers.trained is {self.trained!r}; expected numbers of layers, from 0")

    @property
    def learning_rate(self) -> Schedule:
        """The wrapped optimiser's schedule."""
        return self.optimizer.learning_rate

    def make(self, axes: AxesTree, options: Options = NO_OPTIONS) -> optax.GradientTransformation:
        """See `interface.Optimizer`. Its functions raise a UserError where the layers are not in the stack."""
        inner = self.optimizer.make(axes, options)

        def init(params: Any) -> Any:
            return inner.init(self._take(params, axes))

        def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
            part, state = inner.update(self._take(updates, axes), state, self._take(params, axes))
            return map_with_path(self._put_back, params, part, axes), state

        return optax.GradientTransformation(init, update)

    def state_axes(self, abstract_params: Params, axes: AxesTree) -> Any:
        """See `interface.Optimizer`. The stack of trained layers is not the parameter's, so it has no name."""
        taken = jax.eval_shape(lambda params: self._take(params, axes), abstract_params)
        names = self.optimizer.state_axes(taken, axes)
        return jax.tree.map(lambda axes: tuple(None if a == LAYERS else a for a in axes), names, is_leaf=_is_axes)

    def frozen_paths(self, axes: AxesTree) -> frozenset[str]:
        """Paths of the parameters that the wrapped optimiser never changes."""
        return frozen_paths(self.optimizer, axes)

    def stop_layers(self, params: Params, axes: AxesTree) -> Params:
        """The parameters, with no gradients for the layers that are frozen."""

        def stop(path: str, param: jax.Array, names: Axes) -> jax.Array:
            if LAYERS not in names:
                return param
            axis = names.index(LAYERS)
            trains = jnp.zeros(param.shape[axis], bool).at[self._layers(path, param.shape[axis])].set(True)
            trains = trains.reshape([-1 if d == axis else 1 for d in range(param.ndim)])
            return jnp.where(trains, param, jax.lax.stop_gradient(param))

        return map_with_path(stop, params, axes)

    def _take(self, tree: Any, axes: AxesTree) -> Any:
        """The trained layers of every stack."""

        def take(path: str, leaf: jax.Array, names: Axes) -> jax.Array:
            if LAYERS not in names:
                return leaf
            axis = names.index(LAYERS)
            return jnp.take(leaf, self._layers(path, leaf.shape[axis]), axis, mode="clip")

        return map_with_path(take, tree, axes)

    def _put_back(self, path: str, param: jax.Array, update: jax.Array, names: Axes) -> jax.Array:
        """The update of a whole stack, of that of its trained layers."""
        if LAYERS not in names:
            return update
        axis = names.index(LAYERS)
        place = (*(slice(None),) * axis, self._layers(path, param.shape[axis]))
        # Minus zero: x + -0.0 is x in every bit, where -0.0 + 0.0 would become 0.0.
        return jnp.full(param.shape, -0.0, update.dtype).at[place].set(update)

    def trained_layers(self, num_layers: int, path: str = "the model") -> tuple[int, ...]:
        """Numbers of the layers that train, of a stack of `num_layers`.

        Raises:
          UserError: they are not in the stack, which the message calls `path`.
        """
        every = self.train_every
        layers = tuple(self.trained if every is None else range(every - 1, num_layers, every))
        said = "train_every" if self.trained is None else "trained"
        if every is not None and num_layers % every:
            raise UserError(
                f"FrozenLayers.train_every is {every}, which does not divide the {num_layers} layers of {path}: where "
                "block expansion put a new layer behind every P, it is P + 1, or FrozenLayers.trained names them"
            )
        if not layers or max(layers) >= num_layers or len(set(layers)) < len(layers):
            raise UserError(
                f"FrozenLayers.{said} is {getattr(self, said)}, but {path} has {num_layers} layers, "
                f"numbered 0 to {num_layers - 1}; at least one must train, each named once"
            )
        return layers

    def _layers(self, path: str, num_layers: int) -> jax.Array:
        return jnp.asarray(self.trained_layers(num_layers, path), jnp.int32)


def find_frozen_layers(optimizer: Optimizer | None) -> FrozenLayers | None:
    """The `FrozenLayers` that is, or is wrapped by, an optimiser; None if there is none."""
    while optimizer is not None and not isinstance(optimizer, FrozenLayers):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer


def _is_integer_from(least: int, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_axes(node: Any) -> bool:
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)
