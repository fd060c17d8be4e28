"""Machines a run may be planned for: TPU slices, GPUs, a CPU; what they are called, and how large they come."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.roofline.chips import CHIPS, Chip

# Chips of the largest slice, as a torus (Cloud); several of them are joined over the data centre's network.
_PODS = {
    "v4": (16, 16, 16),
    "v5p": (16, 20, 28),
    "tpu7x": (16, 24, 24),
    "v5e": (16, 16),
    "v6e": (16, 16),
}
# Slices of less than a cube (Cloud's lists); larger ones are made of cubes of 4 x 4 x 4 chips, or of 4 x 4.
_SMALL = {
    3: {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)},
    2: {1: (1, 1), 4: (2, 2), 8: (2, 4), 32: (4, 8), 128: (8, 16)},
}
# What two cores reach with float32 and a small model, measured; a chip that always runs at its peak.
_CPU = Chip(
    name="cpu", kind="cpu", peak_flops=1.4e11, hbm_bytes=16 * 2**30, hbm_bandwidth=2e10, assumed=("peak_flops",)
)
MACHINES: dict[str, Chip] = {**CHIPS, "cpu": _CPU}
# Cloud's names of slices count cores where a chip has two of them.
_NAMED_BY_CORES = ("v4", "v5p")
DEFAULT_GENERATION = "v5p"
# More slices than any run that was published.
MAX_SLICES = 16
_NAME = re.compile(r"([a-z0-9]*[a-z][a-z0-9]*)(?:[-_](?:(\d+)x)?(\d+))?")
_TOPOLOGY = re.compile(r"([a-z0-9]+):(\d+(?:x\d+)*)")


@dataclasses.dataclass(frozen=True)
class Slice:
    """A machine: `slices` slices of `chips` chips each.

    Attributes:
      chip: what it is made of.
      chips: of one slice.
      slices: joined over the data centre's network.
      shape: of one slice's torus; () where there is none.
    """

    chip: Chip
    chips: int
    slices: int = 1
    shape: tuple[int, ...] = ()

    @property
    def total_chips(self) -> int:
        return self.chips * self.slices

    @property
    def devices(self) -> int:
        """Devices of one slice, as JAX lists them."""
        return self.chips * self.chip.devices

    @property
    def peak_flops(self) -> float:
        """Of all chips."""
        return self.total_chips * self.chip.peak_flops

    @property
    def device_bytes(self) -> float:
        """Memory of one device."""
        return self.chip.hbm_bytes / self.chip.devices

    @property
    def topology(self) -> str | None:
        """As the compiler takes it, of one slice: `v5p:8x8x8`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}" if self.shape else None

    @property
    def gin_name(self) -> str:
        """As gin/hardware calls it."""
        return f"{self.chip.name}_{f'{self.slices}x' if self.slices > 1 else ''}{self.chips}"

    def __str__(self) -> str:
        name = f"{self.total_chips:,} x {self.chip.name}"
        if self.slices > 1:
            name = f"{self.slices} slices of {self.chips:,} x {self.chip.name}"
        if not self.shape:
            return name
        by_cores = self.chip.name in _NAMED_BY_CORES
        cloud = f"{self.chip.name}-{self.chips * self.chip.cores}" if by_cores else ""
        return f"{name}, {' x '.join(map(str, self.shape))}{f', which Cloud calls {cloud}' if by_cores else ''}"


def make_slice(generation: str, chips: int, slices: int = 1) -> Slice:
    """A machine of a generation.

    Raises:
      UserError: an unknown generation, or a number of chips that no slice has; names the nearest.
    """
    chip = _find(generation)
    if chip.name not in _PODS:
        # An NVIDIA machine or a CPU: no torus, and no limit that is known here.
        return Slice(chip, chips * slices)
    sizes = slice_sizes(chip.name)
    if chips not in sizes:
        largest = max(sizes)
        if chips > largest:
            raise UserError(
                f"--chips: no slice of {chip.name} has {chips:,} chips, the largest {largest:,}; several are written "
                f"--chips={chip.name}-{max(2, round(chips / largest))}x{largest}"
            )
        near = [max(size for size in sizes if size <= chips)] if chips >= min(sizes) else []
        near += [min(size for size in sizes if size > chips)]
        raise UserError(f"--chips: no slice of {chip.name} has {chips:,} chips; {' or '.join(map(str, near))} would do")
    return Slice(chip, chips, slices, sizes[chips])


def parse_slice(text: str | int) -> Slice | str:
    """A machine by its name: `v5p-512` and `v5p_512` have 512 chips, `v4_2x3072` two slices, `v5p:8x8x8` is a topology.

    Returns:
      The machine; or the generation alone where no number is said (`v5e`).

    Raises:
      UserError: it is no name, or not one of a machine.
    """
    if isinstance(text, int | float) or str(text).strip().isdigit():
        return make_slice(DEFAULT_GENERATION, int(text))
    text = str(text).strip().lower()
    if topology := _TOPOLOGY.fullmatch(text):
        shape = tuple(map(int, topology[2].split("x")))
        machine = make_slice(topology[1], math.prod(shape))
        if len(shape) != len(machine.shape):
            raise UserError(f"--chips is {text!r}; a slice of {topology[1]} has a shape such as {machine.topology}")
        return dataclasses.replace(machine, shape=shape)
    match = _NAME.fullmatch(text)
    if match is None:
        raise UserError(f"--chips is {text!r}; expected a generation and a number of chips, such as v5p-512")
    generation, slices, chips = match.groups()
    _find(generation)
    if int(chips or 1) < 1 or int(slices or 1) < 1:
        raise UserError(f"--chips is {text!r}; expected at least one chip, such as {generation}-64")
    if chips is None and generation != "cpu":
        return generation
    return make_slice(generation, int(chips or 1), int(slices or 1))


def candidates(generation: str) -> list[Slice]:
    """Slices of powers of two, from small to large, and several of the largest."""
    chip = _find(generation)
    if chip.name not in _PODS:
        return [make_slice(generation, 2**power) for power in range(11 if chip.name != "cpu" else 1)]
    counts = [chips for chips in slice_sizes(chip.name) if chips & (chips - 1) == 0]
    joined = itertools.takewhile(lambda slices: slices <= MAX_SLICES, (2**power for power in itertools.count(1)))
    single = [make_slice(generation, chips) for chips in counts]
    return single + [make_slice(generation, counts[-1], slices) for slices in joined]


@functools.cache
def slice_sizes(generation: str) -> dict[int, tuple[int, ...]]:
    """Chips -> the most compact shape, of all slices of a generation, ascending."""
    pod = _PODS[generation]
    found: dict[int, tuple[int, ...]] = dict(_SMALL[len(pod)])
    for shape in itertools.product(*(range(4, size + 1, 4) for size in pod)):
        if list(shape) != sorted(shape) or (len(pod) == 2 and shape not in ((4, 4), (8, 8), (16, 16))):
            continue
        chips = math.prod(shape)
        if chips not in found or sum(shape) < sum(found[chips]):
            found[chips] = shape
    return dict(sorted(found.items()))


def _find(generation: str) -> Chip:
    if generation not in MACHINES:
        near = did_you_mean(generation, MACHINES) or f"; known are {', '.join(MACHINES)}"
        raise UserError(f"--chips: unknown chip {generation!r}{near}")
    return MACHINES[generation]
