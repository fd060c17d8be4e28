"""Large arrays of which devices hold the same part although a dimension could be split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax

# Copies along these are what the axis is for: data parallelism holds the model once a slice or group.
COPYING_AXES = ("data",)
# Bytes of a device below which a copy is no accident worth a line: the price of a few gathered norms.
LARGE = 2**26


class Copies(NamedTuple):
    """An array that lies several times on the mesh.

    Attributes:
      name: of the array.
      axis: mesh axis along which its devices hold the same.
      number: devices along it.
      bytes: on each device.
      divides: the dimensions of the array that could be split over the axis as well.
    """

    name: str
    axis: str
    number: int
    bytes: int
    divides: tuple[int, ...]

    @property
    def wasted(self) -> int:
        """Bytes of a device that a split would save."""
        return self.bytes - self.bytes // self.number


def find_copies(arrays: Mapping[str, jax.ShapeDtypeStruct], least: int = LARGE) -> list[Copies]:
    """Copies that cost a device at least `least` bytes and need not be, largest first.

    Args:
      arrays: by name, each with a `NamedSharding`.
      least: bytes of a device that a split would save.
    """
    found = [copies for name, array in arrays.items() for copies in _copies_of(name, array)]
    return sorted((c for c in found if c.divides and c.wasted >= least), key=lambda c: -c.wasted)


def describe_copies(copies: Copies) -> str:
    """One line."""
    where = " or ".join(map(str, copies.divides))
    return (
        f"{copies.name}: {copies.bytes / 2**20:,.0f} MiB on each of {copies.axis}={copies.number} devices that hold "
        f"the same; dimension {where} could be split over {copies.axis}"
    )


def _copies_of(name: str, array: jax.ShapeDtypeStruct) -> list[Copies]:
    mesh, spec = array.sharding.mesh, array.sharding.spec
    used = {axis for entry in spec if entry is not None for axis in ((entry,) if isinstance(entry, str) else entry)}
    shard = array.sharding.shard_shape(array.shape)
    size = math.prod(shard) * array.dtype.itemsize
    return [
        Copies(name, axis, number, size, tuple(i for i, length in enumerate(shard) if length % number == 0))
        for axis, number in mesh.shape.items()
        if number > 1 and axis not in used and axis not in COPYING_AXES
    ]
