"""Small gradient transformations that optax lacks: those that know of layer stacks and of single parameters.

They are links for `optax.chain`. All but `in_float32` work on float32 trees of nested dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t5x_scale.core.trees import flatten, map_with_path, unflatten
from t5x_scale.optim.interface import Axes, AxesTree, Options, layer_dims

HEADS = ("heads", "kv_heads", "kv")


class CountState(NamedTuple):
    """Number of updates made, an int32 scalar."""

    count: jax.Array


def in_float32(transformation: optax.GradientTransformation, axes: AxesTree) -> optax.GradientTransformation:
    """Shows gradients and parameters to `transformation` as float32, and checks that they have these axes.

    So moments are float32 whatever the dtype of the parameters: a second moment in bfloat16 stops moving as soon
    as its increments fall under 1/256 of it. Updates leave as float32 and are rounded once, when they are added.
    """

    def init(params: Any) -> Any:
        _check_axes(params, axes)
        return transformation.init(optax.tree.cast(params, jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("this optimiser's update needs the parameters")
        return transformation.update(optax.tree.cast(updates, jnp.float32), state, optax.tree.cast(params, jnp.float32))

    return optax.GradientTransformation(init, update)


def scale_by_layer_rms(minimum: float, axes: AxesTree) -> optax.GradientTransformation:
    """Multiplies each layer's update by `max(RMS of the parameter, minimum)`."""

    def scale(path: str, update: jax.Array, param: jax.Array, names: Axes) -> jax.Array:
        return update * jnp.maximum(layer_rms(param, names), minimum)

    return optax.stateless(lambda updates, params: map_with_path(scale, updates, params, axes))


def scale_leaves(options: Options) -> optax.GradientTransformation:
    """Multiplies each update by its parameter's `lr_multiplier`."""

    def scale(path: str, update: jax.Array) -> jax.Array:
        factor = options[path].lr_multiplier if path in options else 1.0
        return update if factor == 1.0 else update * factor

    return optax.stateless(lambda updates, params: map_with_path(scale, updates))


def add_decay(
    rate: float | Callable[[jax.Array], jax.Array], factors: Mapping[str, float]
) -> optax.GradientTransformation:
    """Adds `rate * factor * param` to the update of each path in `factors`; other parameters do not decay.

    Args:
      rate: a number, or a function of the 0-based update.
      factors: `{path: factor}`.
    """

    def init(params: Any) -> Any:
        return CountState(jnp.zeros((), jnp.int32)) if callable(rate) else optax.EmptyState()

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        value = rate(state.count) if callable(rate) else rate

        def add(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
            factor = factors.get(path, 0.0)
            return update + (value * factor) * param if factor else update

        next_state = CountState(optax.safe_increment(state.count)) if callable(rate) else state
        return map_with_path(add, updates, params), next_state

    return optax.GradientTransformation(init, update)


def decay_factors(axes: AxesTree, options: Options, min_rank: int) -> dict[str, float]:
    """`{path: 1.0}` of the parameters that decay: where options say so, else those of `min_rank` a layer or above."""
    factors = {}
    for path, names in flatten(axes).items():
        asked = options[path].decay if path in options else None
        if asked or (asked is None and _rank(names) >= min_rank):
            factors[path] = 1.0
    return factors


def _rank(names: Axes) -> int:
    """Dimensions of one layer's tensor; a vector laid out by heads (a bias of a query, say) is still a vector."""
    own = [names[d] for d in layer_dims(names)]
    return min(len(own), 1) if all(name in HEADS for name in own) else len(own)


def split(
    transformations: Mapping[str, optax.GradientTransformation], labels: Mapping[str, str]
) -> optax.GradientTransformation:
    """Gives each parameter to the transformation of its label; each holds state for its own parameters only.

    Unlike `optax.partition`, whose states hold a masked node for everyone else's parameters, the state of a label
    is that of a smaller tree of parameters: plain nested dicts for checkpoints and for surgery.

    Args:
      transformations: `{label: transformation}`.
      labels: `{path: label}` of every parameter.
    """
    members = {label: [p for p, found in labels.items() if found == label] for label in transformations}
    members = {label: paths for label, paths in members.items() if paths}

    def init(params: Any) -> Any:
        return {label: transformations[label].init(pick(params, paths)) for label, paths in members.items()}

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        merged, next_state = dict.fromkeys(flatten(updates)), {}
        for label, paths in members.items():
            part, next_state[label] = transformations[label].update(
                pick(updates, paths), state[label], pick(params, paths)
            )
            merged.update(flatten(part))
        return unflatten(merged), next_state

    return optax.GradientTransformation(init, update)


def pick(tree: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """The part of nested dicts that holds `paths`."""
    flat = flatten(tree)
    return unflatten({path: flat[path] for path in paths})


def clip_to_rms(function: Callable[..., jax.Array], operands: Any, names: Axes, threshold: float | None) -> jax.Array:
    """`y = function(*operands)`, each layer divided by `max(1, RMS(y) / threshold)` (arXiv 1804.04235, section 6).

    `y` is worked out twice, from operands that are in memory anyway. Left to itself the compiler keeps `y` between
    the reduction and its use: another copy of the parameters, and three times the time on a CPU.
    """
    y = function(*operands)
    if threshold is None:
        return y
    again = function(*jax.lax.optimization_barrier(operands))
    return y / jnp.maximum(1.0, layer_rms(again, names) / threshold)


def layer_rms(x: jax.Array, names: Axes) -> jax.Array:
    """Root mean square of each layer of `x`, shaped to broadcast against it."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=layer_dims(names), keepdims=True))


def _check_axes(params: Any, axes: AxesTree) -> None:
    flat_params, flat_axes = flatten(params), flatten(axes)
    if flat_params.keys() != flat_axes.keys():
        odd = sorted(flat_params.keys() ^ flat_axes.keys())
        raise ValueError(f"parameters and their axes differ at {', '.join(odd[:5])}")
    for path, param in flat_params.items():
        if len(flat_axes[path]) != param.ndim:
            raise ValueError(f"{path} has shape {param.shape} and axes {flat_axes[path]}")
