"""Large arrays that lie several times on a mesh though they need not are found, others are not."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.replication import describe_copies, find_copies

MESH = MeshConfig(data=2, fsdp=2, model=2).make_abstract_mesh()


def array(shape, *spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(MESH, P(*spec)))


@pytest.mark.parametrize(
    ("shape", "spec", "axes"),
    [
        ((64, 1024, 1024), (None, "fsdp", "model"), []),
        ((64, 1024, 1024), (None, "fsdp"), ["model"]),
        ((64, 1024, 1024), (), ["fsdp", "model"]),
        ((64, 1024, 1024), (None, ("fsdp", "model")), []),
        # Copies along data are what data is for.
        ((64, 1024, 1024), (None, ("data", "fsdp", "model")), []),
        # Small, or odd in what is left to split.
        ((1024, 1024), (), []),
        ((65, 1023, 1023), (), []),
    ],
)
def test_axes_along_which_devices_hold_the_same(shape, spec, axes):
    assert [copies.axis for copies in find_copies({"kernel": array(shape, *spec)})] == axes


def test_the_largest_first_with_its_sizes():
    found = find_copies({"a": array((64, 1024, 1024), None, "fsdp"), "b": array((256, 1024, 1024), None, "fsdp")})
    assert [(copies.name, copies.bytes) for copies in found] == [("b", 2**29), ("a", 2**27)]
    assert found[0].wasted == 2**28
    line = describe_copies(found[0])
    assert line.startswith("b: 512 MiB on each of model=2 devices that hold the same; dimension 0 or 1 or 2")
