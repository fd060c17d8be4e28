"""Work that each device does on its own shards, where a partitioner left to choose does poorly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
from jax.sharding import PartitionSpec

from t5x_scale.partitioning.axes import Axes
from t5x_scale.partitioning.shardings import constrain, current_rules, dividing, gather, gathered_spec, to_spec

Placed = Sequence[tuple[jax.Array, Axes]]


def sum_over_shards(function: Callable[..., jax.Array], rows: Placed, parameters: Placed) -> jax.Array:
    """`function(*rows, *parameters)`, where it is a sum over the shards of the parameters.

    Each device calls `function` with its rows and its shards of the parameters, and the results are added over the
    mesh axes that the parameters are split over. So these axes do not split the rows, which are gathered over those
    that did before: with experts over `expert`, each device of that axis sees the tokens of all and adds what its
    experts make of them.

    Args:
      function: takes arrays, gives one array whose first dimensions are those of the rows.
      rows: arrays and their logical axes, all of which begin alike.
      parameters: arrays and the logical axes of how they are used: they are gathered from where they are only stored.

    Returns:
      What `function` gives, split like the rows. Outside `activation_rules` it is simply called.
    """
    arrays = [array for array, _ in (*rows, *parameters)]
    context = current_rules()
    if context is None or context[0].size == 1:
        return function(*arrays)
    mesh, rules = context
    parameter_specs = [gathered_spec(to_spec(rules, axes, mesh)) for _, axes in parameters]
    summed = _axes_of(parameter_specs)
    row_specs = [dividing(mesh, _without(to_spec(rules, axes, mesh), summed), array.shape) for array, axes in rows]
    specs = (*row_specs, *parameter_specs)
    # All is said to differ wherever anything does: the gradient of what was the same is then summed.
    alike = [tuple(sorted(_axes_of(specs) - _axes_of([spec]))) for spec in specs]

    def on_shard(*shards: jax.Array) -> jax.Array:
        partial = function(*(jax.lax.pcast(x, axes, to="varying") for x, axes in zip(shards, alike, strict=True)))
        return jax.lax.psum(partial, tuple(sorted(summed))) if summed else partial

    return jax.shard_map(on_shard, mesh=mesh, in_specs=specs, out_specs=row_specs[0])(*arrays)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def _axes_of(specs: Sequence[PartitionSpec]) -> set[str]:
    return {name for spec in specs for entry in spec for name in _names(entry)}


def _without(spec: PartitionSpec, axes: set[str]) -> PartitionSpec:
    return PartitionSpec(*(tuple(name for name in _names(entry) if name not in axes) or None for entry in spec))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_parameter(x: jax.Array, axes: Axes) -> jax.Array:
    """`shardings.gather`, whose gradient goes back to where the parameter is stored."""
    return gather(x, axes)


def _gather_forward(x: jax.Array, axes: Axes) -> tuple[jax.Array, None]:
    return gather(x, axes), None


def _gather_backward(axes: Axes, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (constrain(gradient, axes),)


gather_parameter.defvjp(_gather_forward, _gather_backward)
