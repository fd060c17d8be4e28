"""Tables [rows, features] that lie in parts, and how devices that hold different tokens share the work with them.

Inside `shard_map`, where each device has its shard and says itself what it exchanges: a partitioner left to choose
reduces a table's gradient wherever it is added to, and splits an axis of 12 into 4 x 3.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from t5x_scale.partitioning.axes import Axes
from t5x_scale.partitioning.shardings import current_rules, dividing, to_spec

Names = tuple[str, ...]
_TOKENS: Axes = ("batch", "length")


class Part(NamedTuple):
    """The rows of a table that a device works with.

    Attributes:
      array: the rows, with all or some of their features.
      first: the number of the first of them.
      end: rows from this number on are padding, or another device's; None where there are none.
    """

    array: jax.Array
    first: jax.Array | int
    end: jax.Array | None


@dataclasses.dataclass(frozen=True)
class TablePlan:
    """Where a table and the tokens that use it lie, on a mesh that divides the tokens.

    Attributes:
      mesh: the mesh.
      stored: partition of the table.
      tokens: partition of arrays [B, L].
      rows: which dimension of the table counts its rows; the other one is the features.
    """

    mesh: Mesh
    stored: PartitionSpec
    tokens: PartitionSpec
    rows: int

    @property
    def token_axes(self) -> Names:
        """The mesh axes along which tokens differ."""
        return tuple(name for entry in self.tokens for name in _names(entry))

    @property
    def idle_axes(self) -> Names:
        """The mesh axes along which all devices have the same tokens."""
        return tuple(name for name, size in self.mesh.shape.items() if size > 1 and name not in self.token_axes)

    @property
    def row_axes(self) -> Names:
        """The mesh axes that split the stored rows, if all are idle: the rows may stay where they are."""
        return self._if_idle(self.rows)

    @property
    def feature_axes(self) -> Names:
        """Those that split the features, likewise."""
        return self._if_idle(1 - self.rows)

    @property
    def turned(self) -> TablePlan:
        """The plan of the transposed table."""
        stored = (*self.stored, None, None)[:2]
        return dataclasses.replace(self, stored=PartitionSpec(*stored[::-1]), rows=1 - self.rows)

    def _if_idle(self, dimension: int) -> Names:
        names = self._stored_names(dimension)
        return names if set(names) <= set(self.idle_axes) else ()

    def _stored_names(self, dimension: int) -> Names:
        return _names(self.stored[dimension]) if dimension < len(self.stored) else ()

    @property
    def gathered_features(self) -> int:
        """How many shards `take` puts together along the features."""
        return 1 if self.feature_axes else self._size(self._stored_names(1 - self.rows))

    def take(self, shard: jax.Array) -> jax.Array:
        """From the stored shard to one that lacks nothing along the axes of the tokens. Linear."""
        # Said first, and so transposed last: what is added over all copies of a shard is the shard and no more.
        shard = self._copies(shard, self.token_axes)
        for dimension in (self.rows, 1 - self.rows):
            shard = self._whole(shard, dimension)
        return shard

    def give(self, gradient: jax.Array, like: jax.Array) -> jax.Array:
        """`take` transposed: a gradient summed over all tokens, to where the table is stored, a shard `like` which."""
        return jax.linear_transpose(self.take, like)(gradient)[0]

    def take_share(self, shard: jax.Array) -> jax.Array:
        """From the stored shard to all features of a share of the rows: `idle_axes` split them. Linear."""
        sliced, swapped, features = self._sliced(), self.feature_axes, 1 - self.rows
        shard = self._whole(self._copies(shard, (*self.token_axes, *sliced)), self.rows)
        if sliced:
            shard, part = self._pad(shard, self._size(sliced))
            shard = jax.lax.dynamic_slice_in_dim(shard, jax.lax.axis_index(sliced) * part, part, self.rows)
        if not swapped:
            return self._whole(shard, features)
        shard, _ = self._pad(shard, self._size(swapped))
        return jax.lax.all_to_all(shard, swapped, self.rows, features, tiled=True)

    def give_share(self, gradient: jax.Array, like: jax.Array) -> jax.Array:
        """`take_share` transposed."""
        return jax.linear_transpose(self.take_share, like)(gradient)[0]

    def share(self, shard: jax.Array) -> Part:
        """`take_share`, and which of the table's rows these are."""
        array = self.take_share(shard)
        sliced, swapped = self._sliced(), self.feature_axes
        # Rows that lie along an idle axis stay there, all others were brought together.
        stored = shard.shape[self.rows] * (1 if self.row_axes else self._size(self._stored_names(self.rows)))
        part = -(-stored // self._size(sliced))
        begin = _index(sliced) * part
        inner = _index(swapped) * array.shape[self.rows]
        first = _index(self.row_axes) * stored + begin + inner
        if self._size(sliced) * part == stored and self._size(swapped) * array.shape[self.rows] == part:
            return Part(array, first, None)
        return Part(array, first, first - inner + jnp.minimum(part, stored - begin))

    def _sliced(self) -> Names:
        taken = {*self.row_axes, *self.feature_axes}
        return tuple(name for name in self.idle_axes if name not in taken)

    def _copies(self, shard: jax.Array, axes: Names) -> jax.Array:
        stored = {*self._stored_names(0), *self._stored_names(1)}
        return jax.lax.pcast(shard, tuple(name for name in axes if name not in stored), to="varying")

    def _whole(self, shard: jax.Array, dimension: int) -> jax.Array:
        names = self._stored_names(dimension)
        if not names or self._if_idle(dimension):
            return shard
        return jax.lax.all_gather(shard, names, axis=dimension, tiled=True)

    def _pad(self, shard: jax.Array, parts: int) -> tuple[jax.Array, int]:
        padding = [(0, 0), (0, 0)]
        padding[self.rows] = (0, -shard.shape[self.rows] % parts)
        shard = jnp.pad(shard, padding)
        return shard, shard.shape[self.rows] // parts

    def _size(self, names: Names) -> int:
        return math.prod(self.mesh.shape[name] for name in names)


def plan_table(axes: Axes, rows: int, tokens_shape: tuple[int, ...]) -> TablePlan | None:
    """How a table with logical `axes`, whose dimension `rows` counts its rows, is used by tokens [B, L].

    None where nothing is split, outside `activation_rules`, and where the batch does not divide over its mesh axes:
    then all of the table is wanted everywhere.
    """
    context = current_rules()
    if context is None or context[0].size == 1 or len(tokens_shape) != len(_TOKENS):
        return None
    mesh, rules = context
    stored, wanted = to_spec(rules, axes, mesh), to_spec(rules, _TOKENS, mesh)
    tokens = dividing(mesh, wanted, tokens_shape)
    if wanted and tokens[0] != wanted[0]:
        return None
    plan = TablePlan(mesh, stored, tokens, rows)
    # Parts that only some devices need cannot be gathered by all: storage must lie along tokens, or stay split.
    mixed = [d for d in (0, 1) if not plan._if_idle(d) and not set(plan._stored_names(d)) <= set(plan.token_axes)]
    return None if mixed else plan


def _index(names: Names) -> jax.Array | int:
    return jax.lax.axis_index(names) if names else 0


def _names(entry: str | Names | None) -> Names:
    return () if entry is None else (entry,) if isinstance(entry, str) else entry
