"""The layers of a decoder as functions of arrays, for those who put their work in an order of their own.

`layered` goes layer by layer through all micro-batches, `pipeline` lets the micro-batches flow through stages of
layers. Both are given a `Stack` and compute what the loop over layers computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t5x_scale.core.errors import UserError
from t5x_scale.layers.masks import Mask
from t5x_scale.partitioning.proposals import nearest_parts

# Auxiliary losses by name: [B] of one layer, [layers, B] of all.
Noted = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers of one kind, their parameters stacked.

    Attributes:
      layer: one layer, `(its parameters, its window, x_BLD, mask, positions) -> (x_BLD, what it noted)`.
      params: every leaf [layers, ...], in the natural order.
      axes: logical axes of one layer's parameters: the structure of `params`, a tuple at each leaf.
      windows: int32 [layers], or None where no layer has a window of its own.
      policy: of `jax.checkpoint`: what the backward pass finds saved of a layer; None is everything.
    """

    layer: Callable[[Any, jax.Array | None, jax.Array, Mask, jax.Array], tuple[jax.Array, Noted]]
    params: Any
    axes: Any
    windows: jax.Array | None
    policy: Callable[..., Any] | None

    @property
    def num_layers(self) -> int:
        """Layers of the stack."""
        return len(jax.tree.leaves(self.params)[0])


# Runs a stack on a whole batch: `(stack, x_BLD, mask, positions) -> (x_BLD, noted)`.
Run = Callable[[Stack, jax.Array, Mask, jax.Array], tuple[jax.Array, Noted]]


def split_rows(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] to [parts, B / parts, ...].

    Row r goes to part r mod `parts`, so that every device, which holds consecutive rows, works on each part.

    Raises:
      UserError: B does not divide.
    """
    if x.shape[0] % parts:
        near = " or ".join(map(str, nearest_parts(x.shape[0], parts, x.shape[0])))
        raise UserError(f"a batch of {x.shape[0]} rows does not divide into {parts} micro-batches; {near} would do")
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def join_rows(x: jax.Array) -> jax.Array:
    """The inverse of `split_rows`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


class Rows:
    """What a layer needs beside its input, cut into micro-batches: the mask and the positions."""

    def __init__(self, mask: Mask, positions: jax.Array, rows: int, parts: int):
        """`rows` is B; leaves [1, L] are the same for all rows and stay whole."""
        self._leaves, self._structure = jax.tree.flatten((mask, positions))
        self._rows = rows
        # What a loop over micro-batches takes: every leaf [parts, B / parts, ...].
        self.split = [split_rows(leaf, parts) for leaf in self._leaves if leaf.shape[0] == rows]

    def join(self, part: list[jax.Array]) -> tuple[Mask, jax.Array]:
        """Mask and positions of one micro-batch, from its share of `split`."""
        own = iter(part)
        leaves = [next(own) if leaf.shape[0] == self._rows else leaf for leaf in self._leaves]
        return jax.tree.unflatten(self._structure, leaves)
