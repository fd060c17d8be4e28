"""Meshes on the machines that are not here: where their axes lie along the links."""

import itertools
import math

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.topologies import topology_devices


def place(device):
    """Coordinates of the chip, and the core."""
    return (*device.coords, device.core_on_chip)


def hops(one, other, shape):
    """Links between two devices of a torus of `shape` chips; the cores of a chip are at no distance."""
    steps = (abs(a - b) for a, b in zip(one.coords, other.coords, strict=True))
    return sum(min(step, size - step) for step, size in zip(steps, shape, strict=True))


@pytest.mark.parametrize(
    ("name", "devices", "kind"),
    [
        ("v4:4x4x4", 64, "TPU v4"),
        ("v5p:4x4x4", 64, "TPU v5"),
        ("v5e:4x4", 16, "TPU v5 lite"),
        ("v5e:1x1", 1, "TPU v5 lite"),
        ("v6e:1x1", 1, "TPU v6 lite"),
        ("v6e:16x16", 256, "TPU v6 lite"),
        ("tpu7x:4x4x4", 128, "TPU7x"),
    ],
)
def test_devices(name, devices, kind):
    found = topology_devices(name)
    assert len(found) == devices
    assert {device.device_kind for device in found} == {kind}
    assert len({place(device) for device in found}) == devices


def test_slices_and_what_is_no_topology():
    assert len(topology_devices("v4:2x2x2", 2)) == 16
    assert len(topology_devices("tpu7x:2x2x2", 2)) == 32
    with pytest.raises(UserError, match="'v5p:4x4x5x2': a slice of v5p is a 3D torus, of 3 sizes"):
        topology_devices("v5p:4x4x5x2")
    with pytest.raises(UserError, match="v6e:3x99"):
        topology_devices("v6e:3x99")


@pytest.mark.parametrize(
    ("name", "shape", "config"),
    [
        ("v4:4x4x4", (4, 4, 4), MeshConfig(model=4)),
        ("v4:12x16x16", (12, 16, 16), MeshConfig(fsdp=256, model=12)),
        ("v5p:8x8x8", (8, 8, 8), MeshConfig(fsdp=64, model=8)),
        ("v5e:4x4", (4, 4, 1), MeshConfig(model=4)),
        ("v6e:16x16", (16, 16, 1), MeshConfig(model=16)),
        ("tpu7x:4x4x4", (4, 4, 4), MeshConfig(model=4)),
    ],
)
def test_an_axis_of_the_mesh_goes_along_a_ring_of_the_torus(name, shape, config):
    """Each device's neighbours along `model` are its neighbours by a link, the last and the first too."""
    mesh = config.make_mesh(topology_devices(name))
    rows = mesh.devices.reshape(-1, config.model)
    for row in rows:
        for one, other in itertools.pairwise([*row, row[0]]):
            assert hops(one, other, shape) <= 1
    assert len({place(device) for device in rows.ravel()}) == mesh.size


def test_two_devices_of_a_chip_stand_together():
    mesh = MeshConfig(model=2).make_mesh(topology_devices("tpu7x:4x4x4"))
    for one, other in mesh.devices.reshape(-1, 2):
        assert one.coords == other.coords


def test_slices_exchange_along_data_only():
    """Two pods: of the mesh of PaLM's machine, scaled down, only `data` leaves a slice."""
    mesh = MeshConfig(fsdp=8, model=4, dcn_data=2).make_mesh(topology_devices("v4:2x4x4", 2))
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices).reshape(2, -1)
    assert all(len(set(row)) == 1 for row in slices)
    assert slices[0, 0] != slices[1, 0]
    assert math.prod(mesh.devices.shape) == 64


def test_slices_of_the_machine_that_the_mesh_does_not_have():
    with pytest.raises(UserError, match="the devices stand in 2; dcn_data=2 would do"):
        MeshConfig().make_mesh(topology_devices("v4:2x2x2", 2))
