"""The one function that builds meshes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.partitioning.axes import MESH_AXES
from t5x_scale.partitioning.proposals import nearest_mesh, nearest_parts


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes within a slice (over ICI), and how many slices there are (over DCN).

    One of the sizes may be -1: it takes what the other axes leave of the devices.

    Attributes:
      data, fsdp, stage, expert, context, model: devices along each axis of one slice.
      dcn_data: slices that hold copies and exchange gradients; multiplies `data`.
      dcn_stage: slices that hold consecutive pipeline stages; multiplies `stage`.
      platform: `tpu`, `gpu` or `cpu`, for which a dry run chooses kernels; None is that of the devices that are here,
        on which everything else runs in any case.
    """

    data: int = 1
    fsdp: int = -1
    stage: int = 1
    expert: int = 1
    context: int = 1
    model: int = 1
    dcn_data: int = 1
    dcn_stage: int = 1
    platform: Literal["tpu", "gpu", "cpu"] | None = None

    def __post_init__(self) -> None:
        """Raises:
        UserError: there is no such platform.
        """
        check_choice("MeshConfig.platform", self.platform, (None, "tpu", "gpu", "cpu"))

    def make_mesh(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Returns a mesh with the axes `MESH_AXES` over `devices` (all devices by default).

        Raises:
          UserError: the sizes do not multiply to the number of devices; says which nearest ones do.
        """
        devices = list(jax.devices() if devices is None else devices)
        slices = self.dcn_data * self.dcn_stage
        ici = self._resolve(len(devices), slices)
        if devices[0].platform == "tpu":
            _check_slices(devices, slices)
        axis_types = (AxisType.Auto,) * len(MESH_AXES)
        return Mesh(_arrange(devices, ici, self._dcn_sizes()), MESH_AXES, axis_types=axis_types)

    def make_abstract_mesh(self, num_devices: int | None = None, platform: str | None = None) -> AbstractMesh:
        """The same mesh without devices: for tables and shapes of a machine that is not here.

        Args:
          num_devices: of that machine; by default just as many as the sizes ask for, a free axis being 1.
          platform: `tpu`, `gpu` or `cpu`, which decides about kernels; by default the mesh's own.

        Raises:
          UserError: as `make_mesh`.
        """
        slices = self.dcn_data * self.dcn_stage
        if num_devices is None:
            num_devices = slices * math.prod(max(getattr(self, name), 1) for name in MESH_AXES)
        ici = self._resolve(num_devices, slices)
        sizes = tuple(size * factor for size, factor in zip(ici, self._dcn_sizes(), strict=True))
        platform = platform or self.platform
        device = None if platform is None else AbstractDevice(device_kind="", num_cores=None, platform=platform)
        return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), abstract_device=device)

    def _dcn_sizes(self) -> tuple[int, ...]:
        return tuple({"data": self.dcn_data, "stage": self.dcn_stage}.get(name, 1) for name in MESH_AXES)

    def _resolve(self, num_devices: int, slices: int) -> tuple[int, ...]:
        sizes = {name: getattr(self, name) for name in MESH_AXES}
        free = [name for name, size in sizes.items() if size == -1]
        if len(free) > 1:
            raise UserError(f"mesh: only one axis may be -1, but {' and '.join(free)} are")
        bad = {name: size for name, size in sizes.items() if size < 1 and size != -1}
        if bad or self.dcn_data < 1 or self.dcn_stage < 1:
            raise UserError(f"mesh: sizes must be positive (or one of them -1); got {bad or self}")
        written = _written(sizes, slices)
        if num_devices % slices:
            near = " or ".join(map(str, nearest_parts(num_devices, slices, num_devices)))
            raise UserError(
                f"mesh {written}: {num_devices} devices do not divide over {slices} slices; {near} would do"
            )
        fixed = slices * math.prod(size for size in sizes.values() if size != -1)
        if num_devices % fixed or (not free and fixed != num_devices):
            near = _written(nearest_mesh(sizes, num_devices // slices), slices)
            if free:
                reason = f"does not fit {num_devices} devices: {fixed} does not divide {num_devices}"
            else:
                reason = f"needs {fixed} devices and there are {num_devices}; -1 for one axis lets it take what is left"
            raise UserError(f"mesh {written} {reason}; the nearest that fits is {near}")
        if free:
            sizes[free[0]] = num_devices // fixed
        return tuple(sizes[name] for name in MESH_AXES)


def _check_slices(devices: Sequence[jax.Device], slices: int) -> None:
    # Devices of a single slice may lack the attribute.
    found = len({getattr(device, "slice_index", 0) for device in devices})
    if found != slices:
        raise UserError(
            f"the mesh has {slices} slices (dcn_data x dcn_stage) and the devices stand in {found}; "
            f"dcn_data={found} would do"
        )


def _written(sizes: Mapping[str, int], slices: int) -> str:
    written = " x ".join(f"{name}={size}" for name, size in sizes.items() if size != 1) or "1"
    return written if slices == 1 else f"{written} on {slices} slices"


def _arrange(devices: list[jax.Device], ici: tuple[int, ...], dcn: tuple[int, ...]) -> np.ndarray:
    """Devices as an array of the mesh's shape, laid along the physical links where the platform has any."""
    if math.prod(dcn) > 1:
        if devices[0].platform == "tpu":
            return mesh_utils.create_hybrid_device_mesh(ici, dcn, devices=devices, allow_split_physical_axes=True)
        # Simulated slices: consecutive devices form a slice, slices vary slowest along their axis.
        array = np.asarray(devices).reshape(dcn + ici)
        order = [axis for pair in zip(range(len(dcn)), range(len(dcn), 2 * len(dcn)), strict=True) for axis in pair]
        return array.transpose(order).reshape(tuple(d * i for d, i in zip(dcn, ici, strict=True)))
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(ici, devices=devices, allow_split_physical_axes=True)
    return np.asarray(devices).reshape(ici)
