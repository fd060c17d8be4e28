"""Parameters that are gathered once and used by many micro-batches, whose gradients are summed in float32.

Autodiff would sum the gradients in the dtype and the layout in which a parameter is used: in bfloat16, and whole on
every device. A held parameter is used in one dtype and has its gradient summed in another, where it is stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_scale.partitioning.axes import PARAMETER_AXES, STORAGE_AXES, Axes
from t5x_scale.partitioning.rules import FirstOf, Rules
from t5x_scale.partitioning.shardings import constrain, gather


class Held(NamedTuple):
    """A parameter while it is held.

    Attributes:
      value: in the dtype in which it is used. Carries no gradient.
      tap: float32 zeros that nobody reads, stored like the parameter; its gradient is the parameter's.
    """

    value: jax.Array
    tap: jax.Array


def hold(params: Any, axes: Any, dtypes: Any) -> Any:
    """`Held` for every leaf, cast to its dtype. `axes` and `dtypes` are trees of the same structure."""

    def one(x: jax.Array, dtype: Any, names: Axes) -> Held:
        return Held(jax.lax.stop_gradient(x).astype(dtype), _tap(x, names))

    return jax.tree.map(one, params, dtypes, axes)


def gather_held(held: Any, axes: Any) -> Any:
    """The same with values gathered over the mesh axes that only store them."""
    return map_held(lambda x, names: Held(gather(x.value, names), x.tap), held, axes)


def map_held(function: Callable[..., Any], held: Any, *trees: Any) -> Any:
    """`jax.tree.map` over trees whose leaves are `Held`."""
    return jax.tree.map(function, held, *trees, is_leaf=lambda x: isinstance(x, Held))


def use(held: Any) -> Any:
    """The parameters of a tree of `Held`."""
    return map_held(lambda x: _use(*x), held)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _tap(x: jax.Array, axes: Axes) -> jax.Array:
    return jnp.zeros(x.shape, jnp.float32)


def _tap_forward(x: jax.Array, axes: Axes):
    # Not a call of `_tap`: a policy of remat has to see what it is made of. An empty slice carries the dtype to the
    # backward pass and costs nothing.
    return jnp.zeros(x.shape, jnp.float32), x[:0]


def _tap_backward(axes: Axes, like: jax.Array, gradient: jax.Array):
    return (constrain(gradient, axes).astype(like.dtype),)


_tap.defvjp(_tap_forward, _tap_backward)


@jax.custom_vjp
def _use(value: jax.Array, tap: jax.Array) -> jax.Array:
    return value


def _use_forward(value: jax.Array, tap: jax.Array):
    return value, None


def _use_backward(_: None, gradient: jax.Array):
    return None, gradient.astype(jnp.float32)


_use.defvjp(_use_forward, _use_backward)


def while_held(rules: Rules) -> Rules:
    """The rules that hold for a layer whose parameters are held: they are not stored in parts."""

    def used(rule: tuple[str, ...]) -> tuple[str, ...]:
        # Of alternatives the first one is where the parameter lies.
        chosen = rule[:1] if isinstance(rule, FirstOf) else rule
        return type(rule)(axis for axis in chosen if axis not in STORAGE_AXES)

    return {name: used(rule) if name in PARAMETER_AXES else rule for name, rule in rules.items()}


def dtypes_of_use(function: Callable[..., Any], params: Any, *args: Any) -> Any:
    """For every leaf of `params` the dtype that `function(params, *args)` casts it to before anything else.

    A parameter of which more than one thing is made keeps its own: a norm's scale, a router's kernel. What is cast
    to begin with may as well be cast before it is gathered, which halves what travels.
    """
    jaxpr = jax.make_jaxpr(function)(params, *args).jaxpr
    leaves, structure = jax.tree.flatten(params)

    def dtype_of_use(variable: Any, leaf: jax.Array) -> Any:
        users = [eqn for eqn in jaxpr.eqns if any(x is variable for x in eqn.invars)]
        casts = {eqn.params["new_dtype"] for eqn in users if eqn.primitive is jax.lax.convert_element_type_p}
        only = len(casts) == 1 and all(eqn.primitive is jax.lax.convert_element_type_p for eqn in users)
        return next(iter(casts)) if only else leaf.dtype

    return jax.tree.unflatten(structure, [dtype_of_use(v, x) for v, x in zip(jaxpr.invars, leaves, strict=False)])
