"""A fixed piece of work, timed on this host and on each of its devices, outside of anything that others take part in.

On an accelerator it is a chain of matrix products of a teraflop, some milliseconds; on a processor much less of it. Of
equal devices the slow one is known by it, where the time of a step is everybody's; and so is one that cannot count,
since equal devices give equal bits.
"""

from __future__ import annotations

import functools
import hashlib
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_SIZE, _PRODUCTS = 2048, 64
_SIZE_CPU, _PRODUCTS_CPU = 256, 32
_HOST_BYTES = bytes(1 << 22)
_REPEATS = 3


class Speeds(NamedTuple):
    """Seconds of the work on the host's processor, and on each local device by its id."""

    host: float
    devices: dict[int, float]


def measure_speeds(devices: Sequence[jax.Device]) -> Speeds:
    """Times the work on devices of this process that have nothing else to do; compiles it at the first call."""
    hosts = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        hashlib.sha256(_HOST_BYTES).digest()
        hosts.append(time.perf_counter() - start)
    return Speeds(statistics.mean(hosts), {device.id: _time(device) for device in devices})


def known_answers(mesh: Mesh) -> np.ndarray:
    """The bits of the work's result on every device of a mesh in its order, uint32 [devices]: equal for equal devices.

    Every process of a run calls it; each receives all of them.
    """
    values, products = _work_of(mesh.devices.flat[0])

    def own(x: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(_work(x, products), jnp.uint32)[None]

    everywhere = PartitionSpec(mesh.axis_names)
    every = jax.shard_map(own, mesh=mesh, in_specs=PartitionSpec(), out_specs=everywhere, check_vma=False)
    return np.asarray(jax.jit(every, out_shardings=NamedSharding(mesh, PartitionSpec()))(values))


def _time(device: jax.Device) -> float:
    values, products = _work_of(device)
    x = jax.device_put(values, device)
    float(_work(x, products))
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        float(_work(x, products))  # Fetched: that a result is ready is said too early on some platforms.
        seconds.append(time.perf_counter() - start)
    return statistics.mean(seconds)


def _work_of(device: jax.Device) -> tuple[np.ndarray, int]:
    """A matrix, and how many times it is multiplied with itself."""
    is_cpu = device.platform == "cpu"
    size = _SIZE_CPU if is_cpu else _SIZE
    values = np.random.default_rng(0).standard_normal((size, size), np.float32)
    return (values, _PRODUCTS_CPU) if is_cpu else (values.astype(jnp.bfloat16), _PRODUCTS)


@functools.partial(jax.jit, static_argnums=1)
def _work(x: jax.Array, products: int) -> jax.Array:
    # Scaled so that the numbers neither grow nor vanish.
    y = jax.lax.fori_loop(0, products, lambda _, y: (y @ x) * jnp.asarray(x.shape[0] ** -0.5, x.dtype), x)
    return jnp.sum(jnp.abs(y), dtype=jnp.float32)
