"""How a machine is split for a model: rows and parameters over `fsdp`, what a layer computes over `model`."""

from __future__ import annotations

import dataclasses

from t5x_scale.planner.slices import Slice

# Devices that split one layer: beyond a torus' axis its sums cost more than they save (PaLM took 12, MaxText 16).
MAX_MODEL = 16
# Share of a device's memory that the gathered weights of a layer and of the next may take.
_GATHERED = 0.15


@dataclasses.dataclass(frozen=True)
class MeshPlan:
    """Sizes of the mesh axes of one slice, and the slices.

    Attributes:
      fsdp: parts of the batch and of the stored parameters.
      model: parts of heads, feed-forward layer and vocabulary.
      slices: copies that exchange gradients.
    """

    fsdp: int = 1
    model: int = 1
    slices: int = 1

    @property
    def row_shares(self) -> int:
        """What the rows of a batch divide by."""
        return self.fsdp * self.slices

    @property
    def devices(self) -> int:
        return self.row_shares * self.model


def choose_mesh(machine: Slice, rows: float, layer_params: float, embed_dim: float) -> MeshPlan:
    """The mesh with the fewest devices a layer.

    Args:
      machine: whose devices it splits.
      rows: of a batch, about; every device along `fsdp` should have one of its own.
      layer_params: parameters of a layer, about; they are gathered in bfloat16 over `fsdp`.
      embed_dim: about; it is split over `fsdp`, and a piece of fewer than eight features is not worth a message.
    """
    sizes = [model for model in range(1, MAX_MODEL + 1) if _suits(machine.devices, model)]
    if not sizes:
        # An odd number of devices, as a torus of 12 x 16 x 20: the smallest that leaves a power of two.
        sizes = [_odd_part(machine.devices)]
    meshes = [MeshPlan(machine.devices // model, model, machine.slices) for model in sizes]

    def is_enough(mesh: MeshPlan) -> bool:
        gathered = 2 * 2 * layer_params / mesh.model
        return mesh.row_shares <= rows and mesh.fsdp * 8 <= embed_dim and gathered <= _GATHERED * machine.device_bytes

    return next((mesh for mesh in meshes if is_enough(mesh)), meshes[-1])


def _suits(devices: int, model: int) -> bool:
    """Whether `fsdp` is then a power of two, which divides sizes of models."""
    fsdp, rest = divmod(devices, model)
    return rest == 0 and fsdp & (fsdp - 1) == 0


def _odd_part(number: int) -> int:
    while number % 2 == 0:
        number //= 2
    return number
