"""From logical axes to shardings, for parameters and for activations."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from t5x_scale.core.errors import UserError
from t5x_scale.partitioning.axes import PARAMETER_AXES, STORAGE_AXES, Axes
from t5x_scale.partitioning.proposals import nearest_multiples, nearest_parts
from t5x_scale.partitioning.rules import FirstOf, IfDivides, Rules

_context: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar("activations", default=None)


def to_spec(rules: Rules, axes: Axes, mesh: Mesh, shape: tuple[int, ...] | None = None) -> PartitionSpec:
    """The partition of an array with logical `axes`. Mesh axes of size 1 are left out; each is used once.

    Without a `shape` all dimensions are taken to divide, also those whose rule is an `IfDivides`.
    """
    used: set[str] = set()
    entries: list[Any] = []
    for dimension, axis in enumerate(axes):
        rule = rules.get(axis or "", ())
        free = [name for name in rule if name not in used][: 1 if isinstance(rule, FirstOf) else None]
        if shape is not None and isinstance(rule, IfDivides) and shape[dimension] % _parts(mesh, tuple(free)):
            free = []
        used.update(free)
        names = tuple(name for name in free if mesh.shape[name] > 1)
        entries.append(None if not names else names[0] if len(names) == 1 else names)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def make_sharding(mesh: Mesh, rules: Rules, axes: Axes, shape: tuple[int, ...], name: str = "array") -> NamedSharding:
    """The sharding of an array with logical `axes` and `shape`.

    Raises:
      UserError: `axes` and `shape` differ in rank, or a dimension does not divide over its mesh axes. The message
        names the array, the dimension and the sizes, and the nearest that would do.
    """
    if len(axes) != len(shape):
        raise UserError(f"{name}: shape {shape} has {len(shape)} dimensions, its axes {axes} {len(axes)}")
    spec = to_spec(rules, axes, mesh, shape)
    for dimension, entry in enumerate(spec):
        names = () if entry is None else (entry,) if isinstance(entry, str) else entry
        parts = math.prod(mesh.shape[n] for n in names)
        if shape[dimension] % parts:
            raise UserError(
                f"{name}: dimension {dimension} ('{axes[dimension]}', size {shape[dimension]}) does not divide over "
                f"{' x '.join(f'{n}={mesh.shape[n]}' for n in names)} = {parts} devices"
                f"{_proposal(axes[dimension], shape[dimension], names, parts, mesh.size)}"
            )
    return NamedSharding(mesh, spec)


def _proposal(axis: str | None, size: int, names: tuple[str, ...], parts: int, num_devices: int) -> str:
    """A batch may be made larger, a matrix may not: there the mesh has to change, but for rows that stand for no id."""
    if axis in PARAMETER_AXES:
        near = [f"{names[0]}={n}" if len(names) == 1 else str(n) for n in nearest_parts(size, parts, num_devices)]
        if axis == "vocab":
            near.append(f"a vocab_size of {nearest_multiples(size, parts)[-1]}, with rows that no id uses,")
    else:
        near = list(map(str, nearest_multiples(size, parts)))
    return f"; {' or '.join(near)} would do" if near else ""


def check_rules_use(mesh: Mesh | AbstractMesh, rules: Rules) -> None:
    """Checks that the rules split something over every axis of the mesh that has more than one device.

    Raises:
      UserError: naming the axes over which every device would hold and compute the same.
    """
    used = {name for names in rules.values() for name in names}
    idle = [f"{name}={size}" for name, size in mesh.shape.items() if size > 1 and name not in used]
    if idle:
        raise UserError(
            f"the mesh has {' and '.join(idle)}, but the rules split nothing over it: every device there would do the "
            "same work. Give the hardware or sharding file after the run file, since both set RULES, or set that axis "
            "to 1"
        )


@contextlib.contextmanager
def activation_rules(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Within this context (at trace time) `constrain` pins activations to `mesh` by `rules`."""
    token = _context.set((mesh, rules))
    try:
        yield
    finally:
        _context.reset(token)


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Pins an activation with logical `axes` to its place; outside `activation_rules` it is the identity.

    A dimension that does not divide over its mesh axes is left free: activations come in odd shapes (a batch
    of one prompt), and a constraint is advice about placement, not about values.
    """
    context = current_rules()
    if context is None:
        return x
    mesh, rules = context
    if mesh.size == 1:
        return x
    if len(axes) != x.ndim:
        raise ValueError(f"an activation of shape {x.shape} has {len(axes)} axes: {axes}")
    spec = dividing(mesh, to_spec(rules, axes, mesh, x.shape), x.shape)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def current_rules() -> tuple[Mesh, Rules] | None:
    """The mesh and rules of the innermost `activation_rules`; None outside."""
    return _context.get()


def current_platform() -> str:
    """`tpu`, `gpu` or `cpu`: what the program that is being traced will run on.

    Within `activation_rules` the platform of the mesh, which may be of devices that are not here; outside, of this
    process's own devices.
    """
    context = current_rules()
    if context is None:
        return jax.default_backend()
    mesh = context[0]
    device = mesh.abstract_device if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0]
    return jax.default_backend() if device is None else device.platform


def dividing(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...]) -> PartitionSpec:
    """`spec` without the entries whose mesh axes do not divide their dimension."""
    entries = zip(spec, shape, strict=False)
    return PartitionSpec(*(entry if size % _parts(mesh, entry) == 0 else None for entry, size in entries))


def _parts(mesh: Mesh, entry: str | tuple[str, ...] | None) -> int:
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return math.prod(mesh.shape[name] for name in names)


def gather(x: jax.Array, axes: Axes) -> jax.Array:
    """Gathers a parameter over the mesh axes that only store it; outside `activation_rules` it is the identity.

    Said in so many words, because a partitioner left to choose may move activations to where the parameters lie
    instead. It then saves little, and the XLA of jax 0.10.2 returns rows in the wrong order when it does so on a
    mesh of data x fsdp x model.
    """
    context = current_rules()
    if context is None or context[0].size == 1:
        return x
    mesh, rules = context
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, gathered_spec(to_spec(rules, axes, mesh, x.shape))))


def gathered_spec(spec: PartitionSpec) -> PartitionSpec:
    """`spec` without the mesh axes that only store: where a parameter lies while it is used."""
    return PartitionSpec(*(_without_storage(entry) for entry in spec))


def _without_storage(entry: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    kept = tuple(name for name in names if name not in STORAGE_AXES)
    return None if not kept else kept[0] if len(kept) == 1 else kept
