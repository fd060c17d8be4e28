"""Meshes: sizes, the free axis, simulated slices, and errors that name things."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from t5x_scale.core.errors import UserError
from t5x_scale.partitioning.axes import MESH_AXES
from t5x_scale.partitioning.mesh import MeshConfig


def ids(mesh):
    return np.vectorize(lambda device: device.id)(mesh.devices)


def test_the_default_takes_all_devices_for_fsdp():
    mesh = MeshConfig().make_mesh()
    assert mesh.axis_names == MESH_AXES
    assert dict(mesh.shape) == {name: 8 if name == "fsdp" else 1 for name in MESH_AXES}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_neighbours_come_last():
    mesh = MeshConfig(data=2, fsdp=2, model=2).make_mesh()
    assert ids(mesh)[0, 0].ravel().tolist() == [0, 1]
    assert ids(mesh)[0, :, 0, 0, 0, 0].ravel().tolist() == [0, 2]
    assert ids(mesh)[:, 0, 0, 0, 0, 0].ravel().tolist() == [0, 4]


def test_some_of_the_devices():
    mesh = MeshConfig(model=2).make_mesh(jax.devices()[2:6])
    assert dict(mesh.shape)["fsdp"] == 2
    assert ids(mesh).ravel().tolist() == [2, 3, 4, 5]


def test_slices_vary_slowest_along_their_axis():
    """Four simulated slices of two devices: two copies of the data, two stages."""
    mesh = MeshConfig(fsdp=1, model=2, dcn_data=2, dcn_stage=2).make_mesh()
    assert {name: size for name, size in mesh.shape.items() if size > 1} == {"data": 2, "stage": 2, "model": 2}
    # [data, stage, model]: `model` stays within a slice of consecutive devices.
    assert ids(mesh).reshape(2, 2, 2).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_slices_multiply_the_data_axis_within_a_slice():
    mesh = MeshConfig(data=2, fsdp=2, dcn_data=2).make_mesh()
    assert dict(mesh.shape)["data"] == 4
    # Data index = slice * 2 + place in the slice; slice 1 begins with device 4.
    assert ids(mesh).reshape(4, 2).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


@given(st.permutations([1, 2, -1, 1, 2, 1]))
def test_the_free_axis_takes_what_is_left(sizes):
    config = MeshConfig(**dict(zip(MESH_AXES, sizes, strict=True)))
    mesh = config.make_mesh()
    assert mesh.size == 8
    assert [2 if size == -1 else size for size in sizes] == [mesh.shape[name] for name in MESH_AXES]
    assert sorted(ids(mesh).ravel()) == list(range(8))
    assert dict(config.make_abstract_mesh(8).shape) == dict(mesh.shape)


def test_a_mesh_of_a_machine_that_is_not_here():
    mesh = MeshConfig(fsdp=256, model=12, dcn_data=2).make_abstract_mesh()
    assert mesh.size == 6144
    assert dict(mesh.shape)["data"] == 2
    assert dict(MeshConfig(model=4).make_abstract_mesh(64).shape)["fsdp"] == 16
    # Without a number of devices the free axis is 1.
    assert MeshConfig(model=4).make_abstract_mesh().size == 4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": -1, "model": -1, "fsdp": 1}, "only one axis may be -1, but data and model are"),
        (
            {"fsdp": 3, "model": 2},
            "mesh fsdp=3 x model=2 needs 6 devices and there are 8; -1 for one axis lets it take what is left; the "
            "nearest that fits is fsdp=4 x model=2$",
        ),
        (
            {"model": 3},
            "mesh fsdp=-1 x model=3 does not fit 8 devices: 3 does not divide 8; the nearest that fits is "
            "fsdp=2 x model=4$",
        ),
        ({"model": 0}, r"sizes must be positive \(or one of them -1\); got {'model': 0}"),
        ({"fsdp": -2}, r"sizes must be positive \(or one of them -1\); got {'fsdp': -2}"),
        ({"dcn_data": 0}, "sizes must be positive"),
        (
            {"fsdp": 8, "dcn_data": 2},
            "mesh fsdp=8 on 2 slices needs 16 devices and there are 8; .*; the nearest that fits is fsdp=4 on 2",
        ),
        ({"dcn_data": 3}, "mesh fsdp=-1 on 3 slices: 8 devices do not divide over 3 slices; 2 or 4 would do$"),
    ],
)
def test_errors(sizes, message):
    config = dataclasses.replace(MeshConfig(), **sizes)
    with pytest.raises(UserError, match=message):
        config.make_mesh()
    with pytest.raises(UserError, match=message):
        config.make_abstract_mesh(8)


class Chip(NamedTuple):
    """As much of a TPU device as is looked at before it is placed."""

    slice_index: int
    platform: str = "tpu"


def test_slices_that_are_not_those_of_the_machine():
    devices = [Chip(index // 4) for index in range(8)]
    message = r"the mesh has 1 slices \(dcn_data x dcn_stage\) and the devices stand in 2; dcn_data=2 would do"
    with pytest.raises(UserError, match=message):
        MeshConfig().make_mesh(devices)


def test_the_platform_of_a_mesh_without_devices():
    def platform(mesh):
        return mesh.abstract_device and mesh.abstract_device.platform

    assert platform(MeshConfig().make_abstract_mesh()) is None
    assert platform(MeshConfig(platform="gpu").make_abstract_mesh()) == "gpu"
    assert platform(MeshConfig(platform="gpu").make_abstract_mesh(4, "tpu")) == "tpu"
    with pytest.raises(UserError, match=r"MeshConfig.platform is 'gqu' \(did you mean 'gpu'"):
        MeshConfig(platform="gqu")
