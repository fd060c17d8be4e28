"""What a chip can do, as data: the numbers that a prediction rests on, and where each comes from.

Sources. "Cloud": the generation's page of the Cloud TPU documentation, read in 2026. "NVIDIA": the data sheet. "PaLM":
arXiv 2204.02311, section 4. "Book": "How to Scale Your Model" (jax-ml.github.io/scaling-book), part 2: PCIe has 16 GB/s
each way on v4, about as much on v5, and 32 GB/s on v6e. "derived": follows from other numbers of the row. What no page
gives stands in `assumed`.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.core.errors import UserError, did_you_mean

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip. Bandwidths are bytes a second.

    Attributes:
      name: of the generation, as in `partitioning.topologies`.
      kind: what JAX calls a device of it.
      peak_flops: dense bfloat16 FLOP/s of the chip.
      hbm_bytes: memory of the chip.
      hbm_bandwidth: of that memory.
      clock: cycles a second of the compiler's `estimated_cycles`; 0 where it gives none.
      devices: devices that JAX lists a chip; what a compiled program uses is the chip's share of one device.
      cores: of the chip.
      matrix_width: rows of a matrix unit.
      torus: dimensions of the torus of links between chips; 0 where there is none.
      link_bandwidth: of one link between chips, in one direction.
      dcn_bandwidth: between slices, a chip's share of its host's network, in one direction.
      host_bandwidth: between chip and host memory, in one direction.
      assumed: names of the attributes above that no page gives; all others have a source beside them.
    """

    name: str
    kind: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    clock: float = 0.0
    devices: int = 1
    cores: int = 1
    matrix_width: int = 128
    torus: int = 0
    link_bandwidth: float = 0.0
    dcn_bandwidth: float = 0.0
    host_bandwidth: float = 0.0
    assumed: tuple[str, ...] = ()

    @property
    def device_peak_flops(self) -> float:
        """Peak of one device as JAX lists them."""
        return self.peak_flops / self.devices

    @property
    def vector_rate(self) -> float:
        """Operations a second of one device on single numbers: 8 x 128 lanes a core, taken to do four at once."""
        return 4 * 1024 * self.cores / self.devices * self.clock


# Clocks are derived from the peak and what the compiler's estimates approach on large products, in FLOPs a cycle and
# device: 2 cores x 4 units x 128 x 128 x 2 on v4 and v5p, 4 x 128 x 128 x 2 on v5e, 2^19 on v6e and a core of TPU7x.
# A link's bandwidth is the chip's (Cloud: both directions of all ports) over ports and directions.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            kind="TPU v4",
            peak_flops=275e12,  # Cloud.
            hbm_bytes=32 * _GIB,  # Cloud.
            hbm_bandwidth=1200e9,  # Cloud.
            clock=275e12 / 2**18,  # derived: 1.05 GHz.
            cores=2,  # Cloud.
            torus=3,  # Cloud.
            link_bandwidth=50e9,  # 2,400 Gbit/s a chip, six ports.
            dcn_bandwidth=81e12 / 8 / 6144,  # PaLM: the burst of all 6,144 chips, 81 Tbit/s; a lower bound.
            host_bandwidth=16e9,  # Book.
            assumed=("link_bandwidth",),
        ),
        Chip(
            name="v5e",
            kind="TPU v5 lite",
            peak_flops=197e12,  # Cloud.
            hbm_bytes=16 * _GIB,  # Cloud.
            hbm_bandwidth=819e9,  # Cloud.
            clock=197e12 / 2**17,  # derived: 1.50 GHz.
            torus=2,  # Cloud.
            link_bandwidth=400e9 / 8,  # Cloud.
            dcn_bandwidth=6.4e12 / 8 / 256,  # Cloud: 6.4 Tbit/s a pod of 256.
            host_bandwidth=16e9,  # Book.
        ),
        Chip(
            name="v5p",
            kind="TPU v5",
            peak_flops=459e12,  # Cloud.
            hbm_bytes=95 * _GIB,  # Cloud.
            hbm_bandwidth=2765e9,  # Cloud.
            clock=459e12 / 2**18,  # derived: 1.75 GHz.
            cores=2,  # Cloud.
            torus=3,  # Cloud.
            link_bandwidth=1200e9 / 12,  # Cloud.
            dcn_bandwidth=50e9 / 8,  # Cloud.
            host_bandwidth=16e9,  # Book.
        ),
        Chip(
            name="v6e",
            kind="TPU v6 lite",
            peak_flops=918e12,  # Cloud.
            hbm_bytes=32 * _GIB,  # Cloud.
            hbm_bandwidth=1638e9,  # Cloud.
            clock=918e12 / 2**19,  # derived: 1.75 GHz.
            matrix_width=256,  # Cloud.
            torus=2,  # Cloud.
            link_bandwidth=800e9 / 8,  # Cloud.
            dcn_bandwidth=25.6e12 / 8 / 256,  # Cloud: 25.6 Tbit/s a pod of 256.
            host_bandwidth=32e9,  # Book.
        ),
        Chip(
            name="tpu7x",
            kind="TPU7x",
            peak_flops=2307e12,  # Cloud.
            hbm_bytes=192 * _GIB,  # Cloud.
            hbm_bandwidth=7380e9,
            clock=2307e12 / 2**20,  # derived: 2.20 GHz.
            devices=2,
            cores=2,  # Cloud.
            matrix_width=256,
            torus=3,  # Cloud.
            link_bandwidth=1200e9 / 12,
            dcn_bandwidth=100e9 / 8,
            host_bandwidth=32e9,
            assumed=("hbm_bandwidth", "link_bandwidth", "dcn_bandwidth", "host_bandwidth"),
        ),
        Chip(
            name="h100",
            kind="NVIDIA H100 80GB HBM3",
            peak_flops=989e12,  # NVIDIA: SXM, dense.
            hbm_bytes=80e9,
            hbm_bandwidth=3350e9,
        ),
        Chip(
            name="h200",
            kind="NVIDIA H200",
            peak_flops=989e12,  # NVIDIA: SXM, dense.
            hbm_bytes=141e9,
            hbm_bandwidth=4800e9,
        ),
    )
}


def find_chip(name: str) -> Chip:
    """The chip of a generation (`v5p`), of a topology (`v5p:4x4x4`) or of a JAX device kind (`TPU v5`).

    Raises:
      UserError: naming the nearest known chip.
    """
    generation = name.split(":")[0]
    by_kind = {chip.kind: chip for chip in CHIPS.values()}
    chip = CHIPS.get(generation) or by_kind.get(name)
    if chip is None:
        near = did_you_mean(generation, CHIPS) or f"; known are {', '.join(CHIPS)}"
        raise UserError(f"unknown chip {name!r}{near}")
    return chip
