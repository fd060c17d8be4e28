"""What moves over the mesh axis `stage`: activations to the next stage, and layers to where they are worked on.

A dimension of stages is split as the logical axis `layers` is. All of this works on shards, in `shard_map`: each is
one collective that a partitioner need not find.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from t5x_scale.core.errors import UserError
from t5x_scale.partitioning.axes import Axes
from t5x_scale.partitioning.shardings import activation_rules, constrain, current_rules, dividing, to_spec

AXIS = "stage"


def num_stages() -> int:
    """Stages of the mesh of the current `activation_rules`; 1 outside.

    Raises:
      UserError: there are several and the rules do not split layers over them.
    """
    context = current_rules()
    if context is None or context[0].shape[AXIS] == 1:
        return 1
    mesh, rules = context
    if rules.get("layers", ()) != (AXIS,):
        raise UserError(f"rules: a pipeline of {AXIS}={mesh.shape[AXIS]} needs the rule 'layers': '{AXIS}'")
    return mesh.shape[AXIS]


def check_rows(rows: int) -> None:
    """Checks that a micro-batch divides over the mesh axes of the batch.

    Raises:
      UserError: naming the sizes.
    """
    context = current_rules()
    if context is None:
        return
    mesh, rules = context
    sizes = {name: mesh.shape[name] for name in rules.get("batch", ()) if mesh.shape[name] > 1}
    if rows % math.prod(sizes.values()):
        written = " x ".join(f"{name}={size}" for name, size in sizes.items())
        raise UserError(f"pipeline: micro-batches of {rows} rows do not divide over {written}; take fewer of them")


@contextlib.contextmanager
def split_over_stages(rows: int) -> Iterator[None]:
    """Within this context the rows of a batch are split over stages too, if `rows` divide: outside of a pipeline its
    stages are so many devices more."""
    context = current_rules()
    if context is None or num_stages() == 1:
        yield
        return
    mesh, rules = context
    batch = (*rules.get("batch", ()), AXIS)
    divides = rows % math.prod(mesh.shape[name] for name in batch) == 0
    with activation_rules(mesh, {**rules, "batch": batch} if divides else rules):
        yield


def shift(x: jax.Array, axes: Axes) -> jax.Array:
    """Row s of the first dimension, that of stages, becomes row s + 1, and the last the first.

    Args:
      x: [stages, ...].
      axes: logical axes of the other dimensions.
    """
    stages = num_stages()
    if stages == 1:
        return x
    mesh, rules = current_rules()
    spec = dividing(mesh, to_spec(rules, ("layers", *axes), mesh), x.shape)
    ring = [(stage, (stage + 1) % stages) for stage in range(stages)]

    def on_device(shard: jax.Array) -> jax.Array:
        return jax.lax.ppermute(shard, AXIS, ring)

    return jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec)(x)


def to_stages(x: jax.Array, axes: Axes, repeats: int, layers: int) -> jax.Array:
    """Groups of layers on their stages: [repeats * stages * layers, ...] to [repeats, stages, layers, ...].

    Args:
      x: a parameter of all layers in their natural order, stored in blocks over the stages.
      axes: its logical axes, the first of them `layers`.
      repeats, layers: group r of stage s begins with layer `(r * stages + s) * layers`.
    """
    stages = num_stages()
    shape = (repeats, stages, layers, *x.shape[1:])
    if stages == 1:
        return x.reshape(shape)
    mesh, rules = current_rules()
    stored = to_spec(rules, axes, mesh, x.shape)
    rest = stored[1:]
    if repeats == 1:
        # The blocks are the groups.
        return constrain(x.reshape(shape), (None, "layers", None, *axes[1:]))
    sent, received = _exchange_tables(stages, repeats, layers)

    def on_device(shard: jax.Array) -> jax.Array:
        own = jax.lax.axis_index(AXIS)
        parcels = jax.lax.all_to_all(shard[jnp.asarray(sent)[own]], AXIS, split_axis=0, concat_axis=0, tiled=True)
        parcels = parcels.reshape(-1, *shard.shape[1:])
        return parcels[jnp.asarray(received)[own]].reshape(repeats, 1, layers, *shard.shape[1:])

    out = PartitionSpec(None, AXIS, None, *rest)
    return jax.shard_map(on_device, mesh=mesh, in_specs=stored, out_specs=out)(x)


def _exchange_tables(stages: int, repeats: int, layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of its layers a stage sends to each, and where it finds its own in what it received.

    Returns:
      int32 [stages, stages, c], filled up with a layer that nobody reads where a stage has fewer than c for another,
      and int32 [stages, repeats * layers].
    """
    block = repeats * layers
    layer = np.arange(stages * block)
    source, target = layer // block, layer // layers % stages
    pairs = [[layer[(source == s) & (target == t)] for t in range(stages)] for s in range(stages)]
    longest = max(len(pair) for row in pairs for pair in row)
    sent = np.zeros((stages, stages, longest), np.int32)
    place = np.zeros(len(layer), np.int32)
    for s, row in enumerate(pairs):
        for t, pair in enumerate(row):
            sent[s, t, : len(pair)] = pair - s * block
            place[pair] = s * longest + np.arange(len(pair))
    return sent, np.stack([place[target == t] for t in range(stages)])
