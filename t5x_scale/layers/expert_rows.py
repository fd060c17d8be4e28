"""Tokens on their way through experts that several devices hold.

Where experts are split over mesh axes that also split the tokens, either all tokens go to all devices of these axes,
and each adds what its experts make of them, or just the tokens and experts that meet are brought together
(all-to-all). The exchange moves `k * buffer` rows for each token, one way and back, the other way as many as there are
devices. Its buffers are bounded and no token is ever left out: a batch that would overflow them goes the other way.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5x_scale.layers.ops.grouped_matmul import grouped_matmul
from t5x_scale.layers.ops.permute import move, permute

Names = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ExpertRows:
    """The work of experts on tokens.

    Attributes:
      activation: of the experts.
      num_experts: on all devices.
      buffer: rows that a device sends to each other one at most, in multiples of what it would send if all experts
        were used alike; 0 is no exchange.
    """

    activation: Callable[[jax.Array], jax.Array]
    num_experts: int
    buffer: float

    def apply(
        self, x: jax.Array, expert: jax.Array, gate: jax.Array, numbers: jax.Array, *kernels: jax.Array
    ) -> jax.Array:
        """The sum over those chosen experts that are among `kernels`.

        Args:
          x: [..., D].
          expert, gate: [..., k]; expert `num_experts` is none.
          numbers: int32 [e], of the experts, consecutive.
          kernels: each [e, in, out], the last leads back.
        """
        k, number = expert.shape[-1], len(numbers)
        local = expert.reshape(-1) - numbers[0]
        # Behind all groups: the choices of other experts, and padding.
        local = jnp.where((local >= 0) & (local < number), local, number)
        rows = jnp.repeat(x.reshape(-1, x.shape[-1]), k, axis=0)
        y = self._through(rows, local, kernels).reshape(*gate.shape, -1)
        return jnp.sum(y.astype(jnp.float32) * gate[..., None], axis=-2).astype(x.dtype)

    def apply_across(
        self,
        axes: Names,
        mesh_axes: Names,
        x: jax.Array,
        expert: jax.Array,
        gate: jax.Array,
        numbers: jax.Array,
        *kernels: jax.Array,
    ) -> jax.Array:
        """The sum over all experts that devices along `axes` hold, for this device's own tokens.

        Args:
          axes: mesh axes, slow to fast, along which tokens are split and experts in order.
          mesh_axes: all along which anything is split.
          x, expert, gate, numbers, kernels: this device's, as of `apply`.
        """
        shape, k, devices = x.shape, expert.shape[-1], jax.lax.axis_size(axes)
        x, expert, gate = (a.reshape(-1, a.shape[-1]) for a in (x, expert, gate))
        arguments = (x, expert, gate, numbers, *kernels)
        everywhere = functools.partial(self._everywhere, axes)
        if not self.buffer or k * self.buffer >= devices:
            return everywhere(*arguments).reshape(shape)
        plan = _plan(expert, self.num_experts, devices, math.ceil(self.buffer * expert.size / devices))
        # One way for all devices, or some would wait for others that never come.
        overflows = jax.lax.pmax(plan.largest, mesh_axes) > plan.capacity
        exchanged = functools.partial(self._exchanged, axes, plan)
        # Of the way that is hardly ever taken nothing is kept for the backward pass: room for it would be.
        return jax.lax.cond(overflows, jax.checkpoint(everywhere), exchanged, *arguments).reshape(shape)

    def _everywhere(self, axes: Names, x, expert, gate, numbers, *kernels) -> jax.Array:
        x, expert, gate = (jax.lax.all_gather(a, axes, tiled=True) for a in (x, expert, gate))
        return jax.lax.psum_scatter(self.apply(x, expert, gate, numbers, *kernels), axes, tiled=True)

    def _exchanged(self, axes: Names, plan: _Plan, x, expert, gate, numbers, *kernels) -> jax.Array:
        def swap(rows: jax.Array) -> jax.Array:
            return jax.lax.all_to_all(rows, axes, 0, 0, tiled=True)

        sent = swap(move(jnp.repeat(x, expert.shape[-1], axis=0), plan.source, plan.target))
        local = swap(jnp.take(expert.reshape(-1), plan.source, mode="fill", fill_value=self.num_experts)) - numbers[0]
        local = jnp.where((local >= 0) & (local < len(numbers)), local, len(numbers))
        y = move(swap(self._through(sent, local, kernels)), plan.target, plan.source).reshape(*gate.shape, -1)
        return jnp.sum(y.astype(jnp.float32) * gate[..., None], axis=-2).astype(x.dtype)

    def _through(self, rows: jax.Array, local: jax.Array, kernels: Sequence[jax.Array]) -> jax.Array:
        """[R, D] to [R, D], each row through the expert `local`; 0 where that is none of `kernels`."""
        *expand, contract = kernels
        number = len(contract)
        order = jnp.argsort(local, stable=True)
        back = jnp.argsort(order)
        sizes = jnp.sum(local[:, None] == jnp.arange(number), axis=0, dtype=jnp.int32)
        rows = permute(rows, order, back)
        inner = [grouped_matmul(rows, kernel, sizes) for kernel in expand]
        h = self.activation(inner[0]) if len(inner) == 1 else self.activation(inner[0]) * inner[1]
        return permute(grouped_matmul(h, contract, sizes), back, order)


class _Plan(NamedTuple):
    """Which choices of a device's tokens stand where in what it sends: `capacity` places for each device.

    Attributes:
      source: int32 [devices * capacity], the number of a choice, or of none.
      target: int32 [choices], a place, or none.
      largest: the most choices that fall to one device.
      capacity: the most that have a place.
    """

    source: jax.Array
    target: jax.Array
    largest: jax.Array
    capacity: int


def _plan(expert: jax.Array, num_experts: int, devices: int, capacity: int) -> _Plan:
    expert = expert.reshape(-1)
    choices, places = len(expert), devices * capacity
    order = jnp.argsort(expert, stable=True)
    rank = jnp.argsort(order)
    device = expert // (num_experts // devices)
    counts = jnp.sum(device[:, None] == jnp.arange(devices), axis=0, dtype=jnp.int32)
    starts = jnp.cumsum(counts) - counts
    place = jnp.arange(capacity, dtype=jnp.int32)
    source = jnp.take(order, starts[:, None] + place, mode="clip").astype(jnp.int32)
    source = jnp.where(place < counts[:, None], source, choices).reshape(-1)
    slot = rank.astype(jnp.int32) - jnp.take(starts, device, mode="clip")
    target = jnp.where((device < devices) & (slot < capacity), device * capacity + slot, places)
    return _Plan(source, target, jnp.max(counts), capacity)
