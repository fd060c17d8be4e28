"""Where the devices of a mesh stand, and how long bytes take between them.

A slice is a torus of two or three dimensions: a chip has two links a dimension, each of which carries its bandwidth in
both directions at once. A dimension that does not close into a ring (slices smaller than 4 x 4 x 4, or 16 on a 2D
torus) is a line, worth half a ring. Slices are joined by the data-centre network (DCN).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.roofline.chips import Chip, find_chip


@dataclasses.dataclass(frozen=True)
class Constants:
    """What no page gives.

    Efficiency of products and stretch of vector work are chosen with the rows of `calibration.PUBLISHED` in sight that
    say so; the others are assumed.

    Attributes:
      link_efficiency: share of a link's bandwidth that a large transfer reaches.
      dcn_efficiency: of the network between slices.
      hop_seconds: time to the neighbouring chip, without bytes.
      launch_seconds: of any collective.
      product_efficiency: share of the peak that the matrix unit reaches while it is fed.
      vector_stretch: measured over the compiler's estimated time of everything else: vector work and copies, alone or
        fused with a product, of which it is what is beyond the product's time at the peak. The estimates are far on the
        safe side: a plain copy is said to run at two fifths of the memory's bandwidth.
    """

    link_efficiency: float = 0.9
    dcn_efficiency: float = 0.8
    hop_seconds: float = 1e-6
    launch_seconds: float = 5e-6
    product_efficiency: float = 0.97
    vector_stretch: float = 0.5

    def stretch(self, estimated: float, ideal: float) -> float:
        """Time of an instruction that the compiler estimates, and whose product takes `ideal` at the peak; seconds."""
        return ideal / self.product_efficiency + max(estimated - ideal, 0.0) * self.vector_stretch


@dataclasses.dataclass(frozen=True)
class Machine:
    """The chips that a program was compiled for.

    Attributes:
      chip: of every device.
      axes: names of the mesh axes.
      shape: their sizes; the program's device i stands at `unravel_index(i, shape)`.
      coords: (devices, torus dimensions), or None where the machine is no torus (GPUs, simulated devices).
      slices: (devices,): which slice each is in.
      torus: size of a slice along each dimension.
    """

    chip: Chip
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    coords: np.ndarray | None
    slices: np.ndarray
    torus: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        """Of all slices."""
        return math.prod(self.shape)

    @property
    def num_chips(self) -> int:
        """Of all slices."""
        return self.num_devices // self.chip.devices

    def wraps(self, dim: int) -> bool:
        """Whether a dimension of the torus is closed: whole cubes of 4 in 3D, the full 16 of a pod in 2D."""
        size = self.torus[dim]
        if self.chip.torus == 2:
            return size == 16
        return all(size % 4 == 0 for size in self.torus)

    def axes_of(self, members: Sequence[int]) -> tuple[str, ...]:
        """The mesh axes along which the devices of a group differ."""
        places = np.array(np.unravel_index(np.asarray(members), self.shape))
        varies = (places != places[:, :1]).any(axis=1)
        return tuple(name for name, differs in zip(self.axes, varies, strict=True) if differs)


def make_machine(mesh: Any, topology: str | None = None, chip: Chip | None = None) -> Machine:
    """The machine under a mesh.

    Args:
      mesh: a `jax.sharding.Mesh`.
      topology: as in `partitioning.topologies` (`v5p:4x4x4`): the shape of a slice; without it the devices' own
        coordinates say how large a slice is.
      chip: what to count with; by default the one named by the topology, or by the devices' kind.

    Raises:
      UserError: the chip is not in the table.
    """
    devices = mesh.devices.flatten()
    chip = chip or find_chip(topology or devices[0].device_kind)
    coords = None
    if chip.torus and all(getattr(device, "coords", None) is not None for device in devices):
        coords = np.array([list(device.coords)[: chip.torus] for device in devices])
    torus = tuple(coords.max(axis=0) + 1) if coords is not None else ()
    if topology and ":" in topology and coords is not None:
        torus = tuple(int(size) for size in topology.split(":")[1].split("x"))
        if len(torus) != chip.torus:
            raise UserError(f"TOPOLOGY {topology!r}: {chip.name} is a torus of {chip.torus} dimensions")
    slices = np.array([getattr(device, "slice_index", 0) or 0 for device in devices])
    return Machine(chip, tuple(mesh.axis_names), tuple(mesh.devices.shape), coords, slices, torus)


@dataclasses.dataclass(frozen=True)
class Route:
    """The links that a group uses.

    Attributes:
      size: devices of the group.
      slices: slices that it spans.
      dims: dimensions of the torus along which it extends.
      extents: devices along each of them.
      lanes: directions of links that a chip can send on at once; a line counts as half a ring.
      hops: to the farthest device.
    """

    size: int
    slices: int
    dims: tuple[int, ...]
    extents: tuple[int, ...]
    lanes: float
    hops: int

    @property
    def within(self) -> int:
        """Devices in one slice."""
        return self.size // self.slices


def find_route(machine: Machine, members: Sequence[int]) -> Route:
    """The links between the devices of a group, from where they stand."""
    members = np.asarray(members)
    slices = len(set(machine.slices[members].tolist()))
    if machine.coords is None:
        return Route(len(members), slices, (), (), 2.0, len(members) // 2)
    places = machine.coords[members]
    dims, extents, lanes, hops = [], [], 0.0, 0
    for dim in range(places.shape[1]):
        seen = np.unique(places[:, dim])
        if len(seen) == 1:
            continue
        # Every second chip of a ring: the links are shared with the groups in between.
        stride = int(np.diff(seen).min())
        is_ring = machine.wraps(dim) and len(seen) * stride == machine.torus[dim]
        dims.append(dim)
        extents.append(len(seen))
        lanes += (2.0 if is_ring else 1.0) / stride
        hops += stride * (len(seen) // 2 if is_ring else len(seen) - 1)
    # Devices of one chip share its links; between themselves an exchange is taken as free.
    chips = len(np.unique(np.column_stack([machine.slices[members], places]), axis=0))
    lanes = lanes * len(members) / chips / machine.chip.devices if dims else math.inf
    return Route(len(members), slices, tuple(dims), tuple(extents), lanes, hops)


def transfer_seconds(machine: Machine, route: Route, kind: str, payload: float, constants: Constants) -> float:
    """Time of a collective.

    Args:
      machine: for the bandwidths.
      route: of the group, its lanes as the compiler uses them.
      kind: `all-reduce`, `all-gather`, `reduce-scatter`, `all-to-all` or `collective-permute`.
      payload: bytes on a device of the larger side: what is reduced, the gathered result, what is exchanged.
      constants: efficiencies and latencies.
    """
    if route.size <= 1 or not payload:
        return 0.0
    seconds = constants.launch_seconds
    if route.within > 1:
        bandwidth = (machine.chip.link_bandwidth or math.inf) * constants.link_efficiency
        seconds += _ici_bytes(route, kind, payload) / bandwidth + constants.hop_seconds * route.hops * _passes(kind)
    if route.slices > 1:
        share = payload if kind == "all-to-all" else payload / route.within
        seconds += _passes(kind) * share * (1 - 1 / route.slices) / dcn_bandwidth(machine, constants)
    return seconds


def dcn_bandwidth(machine: Machine, constants: Constants) -> float:
    """Bytes a second that a device sends to other slices."""
    return (machine.chip.dcn_bandwidth or math.inf) * constants.dcn_efficiency / machine.chip.devices


def _passes(kind: str) -> int:
    return 2 if kind == "all-reduce" else 1


def _ici_bytes(route: Route, kind: str, payload: float) -> float:
    """Bytes over the busiest link direction."""
    if kind == "all-to-all":
        # Along a ring of n chips a byte travels n/4 links on average; the longest dimension is fullest.
        longest = max(route.extents, default=route.within)
        return payload * longest / (8 if route.lanes >= 2 * len(route.extents) else 4)
    if kind == "collective-permute":
        return payload / route.lanes
    return _passes(kind) * payload * (1 - 1 / route.within) / route.lanes
