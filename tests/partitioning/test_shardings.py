"""From logical axes to partitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from t5x_scale.core.errors import UserError
from t5x_scale.partitioning.axes import LOGICAL_AXES, MESH_AXES
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.rules import fsdp_model, make_rules
from t5x_scale.partitioning.shardings import activation_rules, constrain, gather, make_sharding, to_spec

MESH = MeshConfig(data=2, fsdp=2, model=2).make_mesh()


@pytest.mark.parametrize(
    ("axes", "spec"),
    [
        (("embed", "mlp"), ("fsdp", "model")),
        (("layers", "embed", "heads", "kv"), (None, "fsdp", "model")),
        (("batch", "length", "act_embed"), (("data", "fsdp"), None, "model")),  # expert and context have size 1
        (("batch", "embed"), (("data", "fsdp"),)),  # fsdp is taken by the first that asks
        (("mlp", "heads"), ("model",)),
        ((None, "kv"), ()),
        ((), ()),
    ],
)
def test_to_spec(axes, spec):
    assert to_spec(fsdp_model(), axes, MESH) == PartitionSpec(*spec)


@given(
    st.dictionaries(
        st.sampled_from(LOGICAL_AXES), st.lists(st.sampled_from(MESH_AXES), unique=True, max_size=3).map(tuple)
    ),
    st.lists(st.none() | st.sampled_from(LOGICAL_AXES), max_size=4).map(tuple),
)
def test_every_table_gives_a_partition_that_jax_accepts(table, axes):
    """No mesh axis twice, none of size 1, and each dimension over axes that its rule names."""
    rules = make_rules(table)
    sharding = make_sharding(MESH, rules, axes, (8,) * len(axes))
    used = []
    for axis, entry in zip(axes, sharding.spec, strict=False):
        names = () if entry is None else (entry,) if isinstance(entry, str) else entry
        assert set(names) <= set(rules.get(axis, ()))
        used.extend(names)
    assert len(used) == len(set(used))
    assert all(MESH.shape[name] == 2 for name in used)
    shard = sharding.shard_shape((8,) * len(axes))
    assert math.prod(shard) * 2 ** len(used) == 8 ** len(axes)


def test_kv_heads_that_are_too_few_stay_whole():
    axes = ("embed", "kv_heads", "kv")
    assert make_sharding(MESH, fsdp_model(), axes, (4, 2, 3)).spec == PartitionSpec("fsdp", "model")
    assert make_sharding(MESH, fsdp_model(), axes, (4, 1, 3)).spec == PartitionSpec("fsdp")
    with activation_rules(MESH, fsdp_model()):
        gathered = jax.jit(lambda x: gather(x, axes))
        assert gathered(jnp.zeros((4, 2, 3))).sharding.shard_shape((4, 2, 3)) == (4, 1, 3)
        assert gathered(jnp.zeros((4, 1, 3))).sharding.shard_shape((4, 1, 3)) == (4, 1, 3)


def test_errors_name_the_array():
    with pytest.raises(UserError, match=r"wi: shape \(4,\) has 1 dimensions, its axes \('embed', 'mlp'\) 2"):
        make_sharding(MESH, fsdp_model(), ("embed", "mlp"), (4,), "wi")
    message = (
        r"table: dimension 0 \('vocab', size 5\) does not divide over model=2 = 2 devices; "
        "model=1 or a vocab_size of 6, with rows that no id uses, would do$"
    )
    with pytest.raises(UserError, match=message):
        make_sharding(MESH, fsdp_model(), ("vocab", "embed"), (5, 4), "table")
    message = (
        r"a batch: dimension 0 \('batch', size 6\) does not divide over data=2 x fsdp=2 = 4 devices; 4 or 8 would do$"
    )
    with pytest.raises(UserError, match=message):
        make_sharding(MESH, fsdp_model(), ("batch", "length"), (6, 4), "a batch")


class TestConstrain:
    axes = ("batch", "act_embed")

    def place(self, shape, mesh=MESH):
        with activation_rules(mesh, fsdp_model()):
            return jax.jit(lambda x: constrain(x, self.axes))(jnp.zeros(shape)).sharding

    def test_pins(self):
        assert self.place((4, 6)).shard_shape((4, 6)) == (1, 3)

    def test_odd_dimensions_stay_free_and_the_others_are_pinned(self):
        assert self.place((3, 6)).shard_shape((3, 6)) == (3, 3)
        assert self.place((4, 5)).shard_shape((4, 5)) == (1, 5)

    def test_axes_of_another_rank_are_a_mistake(self):
        with pytest.raises(ValueError, match="has 2 axes"):
            self.place((4, 6, 2))

    def test_outside_of_the_context_it_is_the_identity(self):
        x = np.zeros((4, 6))
        assert constrain(x, self.axes) is x
        with activation_rules(MESH, fsdp_model()):
            pass
        assert constrain(x, self.axes) is x

    def test_one_device_has_nothing_to_pin(self):
        with activation_rules(MeshConfig().make_mesh(jax.devices()[:1]), fsdp_model()):
            x = np.zeros((4, 6))
            assert constrain(x, self.axes) is x
