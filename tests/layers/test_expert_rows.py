"""Tokens that travel to experts on other devices give what one device gives, also where there is no room for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t5x_scale.layers.expert_rows import ExpertRows
from t5x_scale.partitioning.mesh import MeshConfig

E, D, F, T, K, DEVICES = 8, 4, 6, 32, 2, 8
RNG = np.random.default_rng(0)
X = RNG.standard_normal((DEVICES, T, D)).astype(np.float32)
GATE = RNG.random((DEVICES, T, K)).astype(np.float32)
KERNELS = (
    RNG.standard_normal((E, D, F)).astype(np.float32),
    RNG.standard_normal((E, D, F)).astype(np.float32),
    RNG.standard_normal((E, F, D)).astype(np.float32),
)
EVEN = ((np.arange(DEVICES * T)[:, None] + [0, 3]) % E).reshape(DEVICES, T, K).astype(np.int32)
CHOICES = {
    "even": EVEN,
    "random": RNG.integers(0, E, EVEN.shape).astype(np.int32),
    "all to one": np.full_like(EVEN, 5),
    "with padding": np.where(RNG.random((DEVICES, T, 1)) < 0.4, E, EVEN).astype(np.int32),
    "none": np.full_like(EVEN, E),
}


class Poisoned(ExpertRows):
    """One that must not send all tokens to all."""

    def _everywhere(self, axes, x, *_):
        return jnp.nan * x


def on_devices(work, x, expert, gate, kernels):
    """The sum of what experts, one a device, make of tokens of all devices."""
    mesh = MeshConfig(fsdp=1, expert=DEVICES).make_mesh()
    across = functools.partial(work.apply_across, ("expert",), ("expert",))
    rows = P("expert")
    run = jax.shard_map(across, mesh=mesh, in_specs=(rows,) * 7, out_specs=rows)
    return run(x, expert, gate, jnp.arange(E, dtype=jnp.int32), *kernels)


def on_one(work, x, expert, gate, kernels):
    return work.apply(x, expert, gate, jnp.arange(E, dtype=jnp.int32), *kernels)


def value_and_gradients(function, work, expert):
    weight = np.random.default_rng(1).standard_normal(X.shape)

    def loss(x, gate, kernels):
        y = function(work, x, expert, gate, kernels)
        return jnp.sum(y * weight), y

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(X, GATE, KERNELS)


def compare(got, wanted):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-5), got, wanted)


@pytest.mark.parametrize("buffer", [0, 1.0, 2.0])
@pytest.mark.parametrize("name", CHOICES)
def test_values_and_gradients(name, buffer):
    work = ExpertRows(jax.nn.silu, E, buffer)
    compare(
        value_and_gradients(on_devices, work, CHOICES[name]),
        value_and_gradients(on_one, ExpertRows(jax.nn.silu, E, 0), CHOICES[name]),
    )


@pytest.mark.parametrize("name", ["even", "with padding", "none"])
def test_only_what_meets_is_exchanged(name):
    got = value_and_gradients(on_devices, Poisoned(jax.nn.silu, E, 1.0), CHOICES[name])
    compare(got, value_and_gradients(on_one, ExpertRows(jax.nn.silu, E, 0), CHOICES[name]))


def test_what_has_no_room_goes_the_other_way():
    """All tokens of one device to one expert: also the devices whose own tokens would have room."""
    expert = EVEN.copy()
    expert[3] = 5
    _, y = value_and_gradients(on_devices, Poisoned(jax.nn.silu, E, 2.0), expert)
    assert np.isnan(y).all()


def test_an_exchange_of_more_than_all_is_none():
    _, y = value_and_gradients(on_devices, Poisoned(jax.nn.silu, E, DEVICES / K), EVEN)
    assert np.isnan(y).all()
