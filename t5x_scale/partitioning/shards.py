"""Work that each device does on its own shards, where a partitioner left to choose does poorly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from t5x_scale.partitioning.axes import STORAGE_AXES, Axes
from t5x_scale.partitioning.shardings import constrain, current_rules, dividing, gather, gathered_spec, to_spec


class Rows(NamedTuple):
    """An array with an entry a token: its first dimensions are those of all the others."""

    array: jax.Array
    axes: Axes


class Parameter(NamedTuple):
    """A parameter, where it is stored, and over which of its axes the work with it may be split."""

    array: jax.Array
    stored: Axes
    used: Axes


def sum_over_shards(
    function: Callable[..., jax.Array],
    rows: Sequence[Rows],
    parameters: Sequence[Parameter],
    across: Callable[..., jax.Array] | None = None,
) -> jax.Array:
    """`function(*rows, *parameters)`, where it is a sum over the shards of the parameters.

    Each device calls `function` with its rows and its shards of the parameters, and the results are added over the
    mesh axes that the parameters are split over. So these axes do not split the rows, which are gathered over those
    that did before: with experts over `expert`, each device of that axis sees the tokens of all and adds what its
    experts make of them.

    Args:
      function: takes arrays, gives one array whose first dimensions are those of the rows.
      rows: what is different for every token.
      across: `across(axes, mesh_axes, *rows, *parameters)` is the sum over the shards of the parameters along `axes`,
        of rows that the same axes split: given, it is called instead where there are such axes, and rows stay where
        they are. The parameters are split in order along them, or along them first. `mesh_axes` are all that split
        anything.
      parameters: what is the same. They are gathered over the mesh axes that only store them, and their gradients
        scattered over them.

    Returns:
      What `function` gives, split like the rows. Outside `activation_rules` it is simply called.
    """
    arrays = [x.array for x in (*rows, *parameters)]
    context = current_rules()
    if context is None or context[0].size == 1:
        return function(*arrays)
    mesh, rules = context
    used = [gathered_spec(to_spec(rules, p.used, mesh, p.array.shape)) for p in parameters]
    summed = _axes_of(used)
    split = _axes_of(dividing(mesh, to_spec(rules, r.axes, mesh), r.array.shape) for r in rows)
    shared = () if across is None else _shared(used, split)
    summed -= set(shared)
    row_specs = [dividing(mesh, _without(to_spec(rules, r.axes, mesh), summed), r.array.shape) for r in rows]
    stored = [
        _storing(to_spec(rules, p.stored, mesh, p.array.shape), spec, p.array.ndim, _axes_of(row_specs))
        for p, spec in zip(parameters, used, strict=True)
    ]
    specs = (*row_specs, *stored)
    # All is said to differ wherever anything does: the gradient of what was the same is then summed.
    alike = [tuple(sorted(_axes_of(specs) - _axes_of([spec]))) for spec in specs]
    kept = [*row_specs, *used]
    # Where a stage of a pipeline is one of many under `vmap`, its axis differs too, which jaxprs made before do not
    # say.
    is_checked = mesh.shape["stage"] == 1

    @functools.partial(jax.checkpoint, policy=_is_no_gather, prevent_cse=False)
    def share(*shards: jax.Array) -> jax.Array:
        if is_checked:
            shards = [jax.lax.pcast(x, axes, to="varying") for x, axes in zip(shards, alike, strict=True)]
        whole = (_gather_shard(x, *pair) for x, *pair in zip(shards, specs, kept, strict=True))
        return across(shared, tuple(sorted(_axes_of(specs))), *whole) if shared else function(*whole)

    def on_shard(*shards: jax.Array) -> jax.Array:
        return jax.lax.psum(share(*shards), tuple(sorted(summed))) if summed else share(*shards)

    return jax.shard_map(on_shard, mesh=mesh, in_specs=specs, out_specs=row_specs[0], check_vma=is_checked)(*arrays)


def _shared(used: Sequence[PartitionSpec], split: set[str]) -> tuple[str, ...]:
    """The mesh axes of parameters that split the rows too, if they are the first of every dimension that has any."""
    found = set()
    for names in (_names(entry) for spec in used for entry in spec):
        shared = tuple(name for name in names if name in split)
        if shared:
            found.add(shared if names[: len(shared)] == shared else ())
    return found.pop() if len(found) == 1 else ()


def _storing(stored: PartitionSpec, used: PartitionSpec, rank: int, split: set[str]) -> PartitionSpec:
    """Where a parameter enters: dimension by dimension where it is stored, if the device can gather it from there.

    It can where a dimension is only stored in parts, over axes that split the rows. Over others all devices have the
    same rows and results, of which `shard_map` cannot know when they are made with something gathered.
    """
    padded = [(*spec, *(None,) * (rank - len(spec))) for spec in (stored, used)]
    entries = zip(*padded, strict=True)
    return PartitionSpec(
        *(s if u is None and set(_names(s)) <= split.intersection(STORAGE_AXES) else u for s, u in entries)
    )


def _gather_shard(x: jax.Array, stored: PartitionSpec, used: PartitionSpec) -> jax.Array:
    for dimension, entry in enumerate(stored):
        if entry != (used[dimension] if dimension < len(used) else None):
            x = jax.lax.all_gather(x, _names(entry), axis=dimension, tiled=True)
    return x


def _is_no_gather(primitive: Any, *_: Any, **__: Any) -> bool:
    # What was gathered is gathered again in the backward pass: of a parameter only the shard is kept in between.
    return primitive is not jax.lax.all_gather_p


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def _axes_of(specs: Iterable[PartitionSpec]) -> set[str]:
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
    # Two steps: in one, a partitioner may move activations to where the gradient is to lie.
    return (constrain(gather(gradient, axes), axes),)


gather_parameter.defvjp(_gather_forward, _gather_backward)
