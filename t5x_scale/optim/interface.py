"""What an optimiser is to the rest of the house, and the helpers every optimiser shares.

An optimiser is a frozen dataclass of hyperparameters that turns a tree of logical axes into an
`optax.GradientTransformation`. It sees names of axes, never names of layers: the axis `layers` marks a stack of
layers, and whatever an optimiser measures of a tensor it measures per layer, so that stacked and separate layers
follow the same trajectory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import optax

from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.core.trees import flatten, map_with_path

Step = int | jax.Array
Axes = tuple[str | None, ...]
# Nested dicts of the same structure: arrays (or ShapeDtypeStructs), and their logical axes.
Params = Mapping[str, Any]
AxesTree = Mapping[str, Any]

LAYERS = "layers"
# Dimensions that count matrices rather than being a side of one.
STACKS = (LAYERS, "expert")
MOMENTUM_DTYPES = ("float32", "bfloat16")


class Schedule(Protocol):
    """The learning rate as a function of the 0-based step (Python int or traced int32) to a float32 scalar."""

    def __call__(self, step: Step) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class LeafOptions:
    """What a group asks of one parameter.

    Attributes:
      lr_multiplier: multiplies the learning rate of this parameter wherever the optimiser uses it.
      decay: whether weight decay applies; None leaves it to the optimiser.
    """

    lr_multiplier: float = 1.0
    decay: bool | None = None


Options = Mapping[str, LeafOptions]
NO_OPTIONS: Options = {}


class Optimizer(Protocol):
    """The contract of every optimiser; `tests/optim/test_optimizer_contract.py` holds each one to it."""

    learning_rate: Schedule

    def make(self, axes: AxesTree, options: Options = NO_OPTIONS) -> optax.GradientTransformation:
        """The transformation for parameters with these logical axes.

        Gradients may be of any floating dtype; updates and state are float32 (momentum as configured) and follow
        optax's convention: the new parameters are `optax.apply_updates(params, updates)`. Clipping by the global
        norm is not inside: see `guards`. The rate is a function of the number of updates made, which lags
        behind the step only where updates were skipped.

        Args:
          axes: nested dicts parallel to the parameters, one name a dimension; `layers` marks a stack.
          options: `{path: LeafOptions}` for the parameters that differ from the rest.
        """
        ...

    def state_axes(self, abstract_params: Params, axes: AxesTree) -> Any:
        """Logical axes of `make(axes).init(params)`: the same tree with a tuple of names for every leaf.

        Scalars have `()`, and a dimension that is not one of the parameter's has the name None.
        """
        ...


def check_config(optimizer: Any, **ranges: tuple[float, float]) -> None:
    """Checks the fields of an optimiser: its schedule, `momentum_dtype`, and numbers by their ranges [low, high).

    Raises:
      UserError: naming the field, its value and what is expected.
    """
    check_schedule(optimizer)
    name = f"{type(optimizer).__name__}.momentum_dtype"
    check_choice(name, getattr(optimizer, "momentum_dtype", "float32"), MOMENTUM_DTYPES)
    check_ranges(optimizer, **ranges)


def check_ranges(owner: Any, **ranges: tuple[float, float]) -> None:
    """Raises a UserError unless the fields of `owner` are in their ranges [low, high), or None where they may be."""
    may_be_none = {field.name for field in dataclasses.fields(owner) if "None" in str(field.type)}
    for field, (low, high) in ranges.items():
        value = getattr(owner, field)
        if value is None and field in may_be_none:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < high:
            bound = f"of {low:g} or above" if high == math.inf else f"from {low:g} to below {high:g}"
            raise UserError(f"{type(owner).__name__}.{field} is {value!r}; expected a number {bound}")


def check_schedule(owner: Any, field: str = "learning_rate") -> None:
    """Raises a UserError unless `owner.<field>` can be called with a step."""
    value = getattr(owner, field)
    if not callable(value) or isinstance(value, type):
        hint = f"schedules.Constant({value})" if isinstance(value, (int, float)) else "one of t5x_scale.optim.schedules"
        raise UserError(f"{type(owner).__name__}.{field} is {value!r}; expected a schedule, such as {hint}")


def frozen_paths(optimizer: Optimizer, axes: AxesTree) -> frozenset[str]:
    """Paths of the parameters that `optimizer` never changes; their gradients need not be computed."""
    find = getattr(optimizer, "frozen_paths", None)
    return find(axes) if find else frozenset()


def stop_frozen(optimizer: Optimizer, axes: AxesTree, params: Params) -> Params:
    """The parameters, without gradients where `optimizer` never changes them: whole ones, and layers of stacks."""
    frozen, stop_layers = frozen_paths(optimizer, axes), getattr(optimizer, "stop_layers", None)
    if frozen:
        params = map_with_path(lambda path, p: jax.lax.stop_gradient(p) if path in frozen else p, params)
    return stop_layers(params, axes) if stop_layers else params


def layer_dims(names: Axes) -> tuple[int, ...]:
    """The dimensions that belong to one layer: all but the one named `layers`."""
    return tuple(d for d, name in enumerate(names) if name != LAYERS)


def matching_state_axes(
    transformation: optax.GradientTransformation,
    abstract_params: Params,
    axes: AxesTree,
    reduced: Mapping[tuple[str, str], Axes] | None = None,
) -> Any:
    """Logical axes of an optimiser state, found by where its leaves stand.

    A leaf that stands at a parameter's path under some field of the state (`.mu['decoder']['norm']['scale']`) and
    has the parameter's shape has the parameter's axes. Leaves elsewhere are counters and constants.

    Args:
      transformation: its `init` is traced, nothing is allocated.
      abstract_params: nested dicts of arrays or `jax.ShapeDtypeStruct`.
      axes: logical axes of the parameters.
      reduced: `{(field, path): axes}` of the leaves whose shape differs from the parameter's.

    Raises:
      ValueError: a leaf stands at a parameter's path with another shape and is not in `reduced`.
    """
    flat_params, flat_axes, reduced = flatten(abstract_params), flatten(axes), reduced or {}

    def name(key_path: tuple[Any, ...], leaf: Any) -> Axes:
        field, path = _field_and_path(key_path)
        names = reduced.get((field, path), flat_axes.get(path) if field else None)
        if names is None:
            return (None,) * leaf.ndim
        if (field, path) not in reduced and leaf.shape != flat_params[path].shape:
            raise ValueError(f"state '{field}' of {path} has shape {leaf.shape}, {flat_params[path].shape} expected")
        if len(names) != leaf.ndim:
            raise ValueError(f"state '{field}' of {path} has shape {leaf.shape} and axes {names}")
        return names

    return jax.tree_util.tree_map_with_path(name, jax.eval_shape(transformation.init, abstract_params))


def _field_and_path(key_path: tuple[Any, ...]) -> tuple[str, str]:
    """Splits a key path into the last field of a named tuple and the keys of nested dicts behind it."""
    keys: list[str] = []
    for entry in reversed(key_path):
        if isinstance(entry, jax.tree_util.DictKey):
            keys.append(str(entry.key))
        elif isinstance(entry, jax.tree_util.GetAttrKey):
            return entry.name, "/".join(reversed(keys))
        else:
            break
    return "", ""
